package awsstub_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"agentops/test/awsstub"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
)

const role = "arn:aws:iam::123456789012:role/path/Role"

var (
	user  = awsstub.User{AccessKeyID: "AKIAUSER", SecretAccessKey: "user-secret", ARN: "arn:aws:iam::123456789012:user/me"}
	chain = awsstub.User{AccessKeyID: "AKIACHAIN", SecretAccessKey: "chain-secret", ARN: "arn:aws:sts::123456789012:assumed-role/Host/i-1"}
)

func start(t *testing.T, config awsstub.Config) *awsstub.Stub {
	t.Helper()
	config.Users = []awsstub.User{user, chain}
	stub, err := awsstub.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stub.Close() })
	return stub
}

func client(stub *awsstub.Stub, id, secret, token string) *sts.Client {
	return sts.New(sts.Options{
		Region: "us-east-1", BaseEndpoint: aws.String(stub.URL()), RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider(id, secret, token),
	})
}

func code(err error) string {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		return api.ErrorCode()
	}
	return ""
}

func assume(c *sts.Client, duration time.Duration, externalID string) (*sts.AssumeRoleOutput, error) {
	input := &sts.AssumeRoleInput{RoleArn: aws.String(role), RoleSessionName: aws.String("test"), DurationSeconds: aws.Int32(int32(duration / time.Second))}
	if externalID != "" {
		input.ExternalId = aws.String(externalID)
	}
	return c.AssumeRole(context.Background(), input)
}

func TestASessionIsTheRoleUntilItExpires(t *testing.T) {
	stub := start(t, awsstub.Config{Roles: []awsstub.Role{{ARN: role}}, Lifetime: time.Second})
	got, err := assume(client(stub, user.AccessKeyID, user.SecretAccessKey, ""), time.Hour, "")
	if err != nil {
		t.Fatal(err)
	}
	c := got.Credentials
	session := client(stub, *c.AccessKeyId, *c.SecretAccessKey, *c.SessionToken)
	who, err := session.GetCallerIdentity(t.Context(), nil)
	if err != nil || *who.Arn != "arn:aws:sts::123456789012:assumed-role/Role/test" {
		t.Errorf("the session is %v, %v", who, err)
	}
	for err == nil { // until it has expired
		_, err = session.GetCallerIdentity(t.Context(), nil)
	}
	if code(err) != "ExpiredToken" {
		t.Errorf("an expired session: %v", err)
	}
}

func TestWhatIsRefused(t *testing.T) {
	stub := start(t, awsstub.Config{Roles: []awsstub.Role{{ARN: role, ExternalID: "ticket", MaxDuration: 4 * time.Hour}}})
	for name, c := range map[string]struct {
		id, secret, token string
		duration          time.Duration
		externalID        string
		want              string
	}{
		"nothing":        {user.AccessKeyID, user.SecretAccessKey, "", 4 * time.Hour, "ticket", ""},
		"secret":         {user.AccessKeyID, "wrong", "", time.Hour, "ticket", "SignatureDoesNotMatch"},
		"key":            {"AKIAOTHER", "wrong", "", time.Hour, "ticket", "InvalidClientTokenId"},
		"external id":    {user.AccessKeyID, user.SecretAccessKey, "", time.Hour, "other", "AccessDenied"},
		"no external id": {user.AccessKeyID, user.SecretAccessKey, "", time.Hour, "", "AccessDenied"},
		"too long":       {user.AccessKeyID, user.SecretAccessKey, "", 5 * time.Hour, "ticket", "ValidationError"},
		"too short":      {user.AccessKeyID, user.SecretAccessKey, "", time.Minute, "ticket", "ValidationError"},
		"chained":        {chain.AccessKeyID, chain.SecretAccessKey, "", 2 * time.Hour, "ticket", "ValidationError"},
		"chained, short": {chain.AccessKeyID, chain.SecretAccessKey, "", time.Hour, "ticket", ""},
	} {
		_, err := assume(client(stub, c.id, c.secret, c.token), c.duration, c.externalID)
		if code(err) != c.want || c.want == "" && err != nil {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	stub.Fail(awsstub.Failure{Code: "Throttling", Message: "slow down"})
	if _, err := assume(client(stub, user.AccessKeyID, user.SecretAccessKey, ""), time.Hour, "ticket"); code(err) != "Throttling" {
		t.Errorf("an ordered failure: %v", err)
	}
}

// The CLI signs and uploads in ways of its own.
func TestTheCLI(t *testing.T) {
	stub := start(t, awsstub.Config{Buckets: map[string]map[string][]byte{"bucket": {"a/key with space+": []byte("content\n")}}})
	dir := t.TempDir()
	cli := func(args ...string) string {
		cmd := exec.Command("/usr/bin/aws", append([]string{"--endpoint-url", stub.URL(), "--region", "us-east-1"}, args...)...)
		cmd.Dir = dir
		cmd.Env = []string{
			"PATH=/usr/bin:/bin", "HOME=" + dir, "AWS_ACCESS_KEY_ID=" + user.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + user.SecretAccessKey,
			"AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE=" + dir + "/none", "AWS_SHARED_CREDENTIALS_FILE=" + dir + "/none", "AWS_PAGER=",
		}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("aws %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	if out := cli("s3", "ls"); !strings.Contains(out, "bucket") {
		t.Errorf("listed %s", out)
	}
	if out := cli("s3", "ls", "s3://bucket/a/"); !strings.Contains(out, "8 key with space+") {
		t.Errorf("listed %s", out)
	}
	big := strings.Repeat("0123456789abcdef", 100<<10)
	if err := os.WriteFile(filepath.Join(dir, "up"), []byte(big), 0o600); err != nil {
		t.Fatal(err)
	}
	cli("s3", "cp", "up", "s3://bucket/b/up")
	cli("s3", "cp", "s3://bucket/b/up", "down")
	if got, err := os.ReadFile(filepath.Join(dir, "down")); err != nil || string(got) != big {
		t.Errorf("%d bytes came back of %d, %v", len(got), len(big), err)
	}
}
