package awsstub_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"agentops/test/awsstub"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
)

const role = "arn:aws:iam::123456789012:role/path/Role"

var (
	user  = awsstub.User{AccessKeyID: "AKIAUSER", SecretAccessKey: "user-secret", ARN: "arn:aws:iam::123456789012:user/me"}
	chain = awsstub.User{AccessKeyID: "ASIACHAIN", SecretAccessKey: "chain-secret", SessionToken: "chain-token", ARN: "arn:aws:sts::123456789012:assumed-role/Host/i-1"}
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
	var late atomic.Int64 // how far ahead the clock is
	stub := start(t, awsstub.Config{
		Roles: []awsstub.Role{{ARN: role}}, Lifetime: 20 * time.Second,
		Now: func() time.Time { return time.Now().Add(time.Duration(late.Load())) },
	})
	got, err := assume(client(stub, user.AccessKeyID, user.SecretAccessKey, ""), time.Hour, "")
	if err != nil {
		t.Fatal(err)
	}
	c := got.Credentials
	if left := time.Until(*c.Expiration); left <= 0 || left > 20*time.Second {
		t.Errorf("it lasts for %s", left)
	}
	session := client(stub, *c.AccessKeyId, *c.SecretAccessKey, *c.SessionToken)
	who, err := session.GetCallerIdentity(t.Context(), nil)
	if err != nil || *who.Arn != "arn:aws:sts::123456789012:assumed-role/Role/test" {
		t.Errorf("the session is %v, %v", who, err)
	}
	for name, token := range map[string]string{"none": "", "another": "x" + *c.SessionToken} {
		if _, err := client(stub, *c.AccessKeyId, *c.SecretAccessKey, token).GetCallerIdentity(t.Context(), nil); code(err) != "InvalidClientTokenId" {
			t.Errorf("%s for the session's token: %v", name, err)
		}
	}
	late.Store(int64(20 * time.Second))
	if _, err = session.GetCallerIdentity(t.Context(), nil); code(err) != "ExpiredToken" {
		t.Errorf("an expired session: %v", err)
	}
}

func TestWhatIsRefused(t *testing.T) {
	const closed = "arn:aws:iam::123456789012:role/Closed"
	stub := start(t, awsstub.Config{Roles: []awsstub.Role{
		{ARN: role, ExternalID: "ticket", MaxDuration: 4 * time.Hour, TrustedBy: []string{user.ARN, chain.ARN}},
		{ARN: closed, TrustedBy: []string{chain.ARN}},
	}})
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
		"chained":        {chain.AccessKeyID, chain.SecretAccessKey, chain.SessionToken, 2 * time.Hour, "ticket", "ValidationError"},
		"chained, short": {chain.AccessKeyID, chain.SecretAccessKey, chain.SessionToken, time.Hour, "ticket", ""},
	} {
		_, err := assume(client(stub, c.id, c.secret, c.token), c.duration, c.externalID)
		if code(err) != c.want || c.want == "" && err != nil {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	host := client(stub, user.AccessKeyID, user.SecretAccessKey, "")
	for name, input := range map[string]*sts.AssumeRoleInput{
		"AccessDenied":    {RoleArn: aws.String(closed), RoleSessionName: aws.String("test")}, // trusts another
		"ValidationError": {RoleArn: aws.String(role), RoleSessionName: aws.String("a b")},
	} {
		if _, err := host.AssumeRole(t.Context(), input); code(err) != name {
			t.Errorf("%v, want %s", err, name)
		}
	}
	for _, failure := range []string{"Throttling", "AccessDenied", "ExpiredToken"} {
		stub.Fail(awsstub.Failure{Code: failure})
		if _, err := assume(host, time.Hour, "ticket"); code(err) != failure {
			t.Errorf("the %s that was ordered: %v", failure, err)
		}
	}
}

// A slow STS answers when it is let, and a caller may give up before.
func TestASlowAnswer(t *testing.T) {
	stub := start(t, awsstub.Config{Roles: []awsstub.Role{{ARN: role}}})
	host := client(stub, user.AccessKeyID, user.SecretAccessKey, "")
	never, answer := make(chan struct{}), make(chan struct{})
	stub.Fail(awsstub.Failure{Block: never}, awsstub.Failure{Block: answer})
	ctx, cancel := context.WithCancel(t.Context())
	input := &sts.AssumeRoleInput{RoleArn: aws.String(role), RoleSessionName: aws.String("test")}
	results := make(chan error)
	go func() { _, err := host.AssumeRole(ctx, input); results <- err }()
	if err := stub.AwaitAssumeRole(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-results; !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up got %v", err)
	}
	go func() { _, err := host.AssumeRole(t.Context(), input); results <- err }()
	if err := stub.AwaitAssumeRole(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-results:
		t.Errorf("answered before it was let: %v", err)
	default:
	}
	close(answer)
	if err := <-results; err != nil {
		t.Error(err)
	}
}

// newRequest makes a request to S3 that is signed as of age ago; before is done to it
// before that.
func newRequest(t *testing.T, stub *awsstub.Stub, method, path string, age time.Duration, before func(*http.Request)) *http.Request {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, stub.URL()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Host = "s3.us-east-1.amazonaws.com"
	empty := sha256.Sum256(nil)
	request.Header.Set("X-Amz-Content-Sha256", hex.EncodeToString(empty[:]))
	if before != nil {
		before(request)
	}
	keys := aws.Credentials{AccessKeyID: user.AccessKeyID, SecretAccessKey: user.SecretAccessKey}
	if err := v4.NewSigner().SignHTTP(t.Context(), keys, request, request.Header.Get("X-Amz-Content-Sha256"), "s3", "us-east-1", time.Now().Add(-age)); err != nil {
		t.Fatal(err)
	}
	return request
}

// What is changed after it was signed, was signed for another time or not at all is
// refused.
func TestSignatures(t *testing.T) {
	stub := start(t, awsstub.Config{Buckets: map[string]map[string][]byte{"bucket": {"key": []byte("content")}}})
	replace := func(body string) func(*http.Request) {
		return func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
		}
	}
	for name, c := range map[string]struct {
		age    time.Duration
		change func(*http.Request)
		status int
		says   string
	}{
		"as it was":     {0, func(*http.Request) {}, 200, "content"},
		"no signature":  {0, func(r *http.Request) { r.Header.Del("Authorization") }, 403, "AccessDenied"},
		"other path":    {0, func(r *http.Request) { r.URL.Path = "/bucket/other" }, 403, "SignatureDoesNotMatch"},
		"other query":   {0, func(r *http.Request) { r.URL.RawQuery = "versionId=1" }, 403, "SignatureDoesNotMatch"},
		"other method":  {0, func(r *http.Request) { r.Method = http.MethodDelete }, 403, "SignatureDoesNotMatch"},
		"other host":    {0, func(r *http.Request) { r.Host = "s3.us-west-2.amazonaws.com" }, 403, "SignatureDoesNotMatch"},
		"other service": {0, func(r *http.Request) { r.Host = "sts.us-east-1.amazonaws.com" }, 403, "MissingAuthenticationToken"},
		"other body":    {0, replace("x"), 400, "XAmzContentSHA256Mismatch"},
		"too old":       {16 * time.Minute, func(*http.Request) {}, 403, "RequestTimeTooSkewed"},
		"from ahead":    {-16 * time.Minute, func(*http.Request) {}, 403, "RequestTimeTooSkewed"},
	} {
		request := newRequest(t, stub, http.MethodGet, "/bucket/key", c.age, nil)
		c.change(request)
		if status, body := send(t, request); status != c.status || !strings.Contains(body, c.says) {
			t.Errorf("%s: %d %s, want %d with %q", name, status, body, c.status, c.says)
		}
	}
}

// Uploads come in chunks from clients that add a checksum behind.
func TestChunks(t *testing.T) {
	stub := start(t, awsstub.Config{Buckets: map[string]map[string][]byte{"bucket": {}}})
	const chunks = "4\r\nsome\r\n5;chunk-signature=x\r\n more\r\n0\r\nx-amz-checksum-crc32:AAAA\r\n\r\n"
	for name, c := range map[string]struct {
		decoded, body string
		status        int
	}{
		"good":     {"9", chunks, 200},
		"lack":     {"10", chunks, 400},
		"cut":      {"9", chunks[:12], 400},
		"longer":   {"4", "3\r\nsome\r\n0\r\n\r\n", 400},
		"none":     {"4", "x\r\nsome\r\n0\r\n\r\n", 400},
		"negative": {"4", "-4\r\nsome\r\n0\r\n\r\n", 400},
	} {
		path := "/bucket/" + name
		put := newRequest(t, stub, http.MethodPut, path, 0, func(r *http.Request) {
			r.Header.Set("X-Amz-Content-Sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER")
			r.Header.Set("X-Amz-Decoded-Content-Length", c.decoded)
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(c.body)), int64(len(c.body))
		})
		if status, body := send(t, put); status != c.status {
			t.Errorf("%s: %d %s, want %d", name, status, body, c.status)
		}
		status, body := send(t, newRequest(t, stub, http.MethodGet, path, 0, nil))
		if stored := status == 200 && body == "some more"; stored != (c.status == 200) {
			t.Errorf("%s: then there is %d %s", name, status, body)
		}
	}
}

func TestS3(t *testing.T) {
	stub := start(t, awsstub.Config{Buckets: map[string]map[string][]byte{"bucket": {"a/one": []byte("content"), "a/b/two": nil, "a/b/three": nil}}})
	for _, c := range []struct {
		method, path, bytes string
		status              int
		says                string
	}{
		{"GET", "/", "", 200, "<Name>bucket</Name>"},
		{"GET", "/bucket?list-type=2&prefix=a%2F&delimiter=%2F", "", 200, "<Contents><Key>a/one</Key>"},
		{"GET", "/bucket?list-type=2&prefix=a%2F&delimiter=%2F&max-keys=1", "", 200, "<KeyCount>1</KeyCount><MaxKeys>1</MaxKeys><IsTruncated>true</IsTruncated><NextContinuationToken>" + hex.EncodeToString([]byte("a/b/"))},
		{"GET", "/bucket?list-type=2&prefix=a%2F&delimiter=%2F&continuation-token=" + hex.EncodeToString([]byte("a/b/")), "", 200, "<KeyCount>1</KeyCount>"},
		{"GET", "/bucket?list-type=2&max-keys=x", "", 400, "InvalidArgument"},
		{"GET", "/bucket?location=", "", 200, "LocationConstraint"},
		{"HEAD", "/bucket", "", 200, ""},
		{"GET", "/none", "", 404, "NoSuchBucket"},
		{"GET", "/none/key", "", 404, "NoSuchBucket"},
		{"GET", "/bucket/none", "", 404, "NoSuchKey"},
		{"HEAD", "/bucket/none", "", 404, ""},
		{"GET", "/bucket/a/one", "", 200, "content"},
		{"GET", "/bucket/a/one", "bytes=1-3", 206, "ont"},
		{"GET", "/bucket/a/one", "bytes=7-", 416, "InvalidRange"},
		{"DELETE", "/bucket/a/one", "", 405, "MethodNotAllowed"},
		{"POST", "/bucket/a/one?uploads=", "", 501, "NotImplemented"},
	} {
		request := newRequest(t, stub, c.method, c.path, 0, func(r *http.Request) {
			if c.bytes != "" {
				r.Header.Set("Range", c.bytes)
			}
		})
		if status, body := send(t, request); status != c.status || !strings.Contains(body, c.says) {
			t.Errorf("%s %s %s: %d %s, want %d with %s", c.method, c.path, c.bytes, status, body, c.status, c.says)
		}
	}
}

func send(t *testing.T, request *http.Request) (int, string) {
	t.Helper()
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

// A presigned request carries its signature in the URL, for its time.
func TestPresigned(t *testing.T) {
	var late atomic.Int64
	stub := start(t, awsstub.Config{Now: func() time.Time { return time.Now().Add(time.Duration(late.Load())) }})
	signed, err := sts.NewPresignClient(client(stub, user.AccessKeyID, user.SecretAccessKey, "")).PresignGetCallerIdentity(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	get := func(url string) (int, string) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), signed.Method, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		return send(t, request)
	}
	if status, body := get(signed.URL); status != 200 || !strings.Contains(body, user.ARN) {
		t.Errorf("%d %s", status, body)
	}
	if status, body := get(strings.Replace(signed.URL, "GetCallerIdentity", "AssumeRole", 1)); status != 403 || !strings.Contains(body, "SignatureDoesNotMatch") {
		t.Errorf("of another action: %d %s", status, body)
	}
	late.Store(int64(time.Hour))
	if status, body := get(signed.URL); status != 403 {
		t.Errorf("an hour later: %d %s", status, body)
	}
}

// The CLI signs, lists and uploads in ways of its own.
func TestTheCLI(t *testing.T) {
	stub := start(t, awsstub.Config{Buckets: map[string]map[string][]byte{"bucket": {
		"a/key with space+": []byte("content\n"), "a/other": nil, "a/b/below": nil, "a/b/too": nil,
	}}})
	dir := t.TempDir()
	cli := func(args ...string) (string, error) {
		cmd := exec.Command("/usr/bin/aws", append([]string{"--endpoint-url", stub.URL(), "--region", "us-east-1"}, args...)...)
		cmd.Dir = dir
		cmd.Env = []string{
			"PATH=/usr/bin:/bin", "HOME=" + dir, "AWS_ACCESS_KEY_ID=" + user.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + user.SecretAccessKey,
			"AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE=" + dir + "/none", "AWS_SHARED_CREDENTIALS_FILE=" + dir + "/none", "AWS_PAGER=",
		}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for _, c := range []struct{ args, want string }{
		{"s3 ls", "bucket"},
		{"s3 ls --recursive --page-size 1 s3://bucket", "8 a/key with space+\n"},
	} {
		if out, err := cli(strings.Fields(c.args)...); err != nil || !strings.Contains(out, c.want) {
			t.Errorf("aws %s: %v, %s, want %q", c.args, err, out, c.want)
		}
	}
	big := strings.Repeat("0123456789abcdef", 100<<10)
	if err := os.WriteFile(filepath.Join(dir, "up"), []byte(big), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"s3", "cp", "up", "s3://bucket/b/up"}, {"s3", "cp", "s3://bucket/b/up", "down"}} {
		if out, err := cli(args...); err != nil {
			t.Errorf("aws %q: %v\n%s", args, err, out)
		}
	}
	if got, err := os.ReadFile(filepath.Join(dir, "down")); err != nil || string(got) != big {
		t.Errorf("%d bytes came back of %d, %v", len(got), len(big), err)
	}
}
