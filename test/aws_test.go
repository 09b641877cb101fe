package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"agentops/test/awsstub"
)

const (
	roleARN    = "arn:aws:iam::123456789012:role/AgentRole"
	hostKeyID  = "AKIASTANDINEXAMPLE00"
	hostSecret = "stand-in/secret/of/the/host"
)

// newAWS starts the stand-in and returns the host's AWS environment for it.
func newAWS(t *testing.T, lifetime time.Duration) (*awsstub.Stub, []string) {
	t.Helper()
	stub, err := awsstub.New(awsstub.Config{
		Users:    []awsstub.User{{AccessKeyID: hostKeyID, SecretAccessKey: hostSecret, ARN: "arn:aws:iam::123456789012:user/host"}},
		Roles:    []awsstub.Role{{ARN: roleARN}},
		Lifetime: lifetime,
		Buckets: map[string]map[string][]byte{
			"demo-logs":    {},
			"demo-reports": {"summary.txt": []byte("nothing to report\n")},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stub.Close() })
	ca := filepath.Join(t.TempDir(), "aws-ca.pem")
	if err := os.WriteFile(ca, stub.CA(), 0o600); err != nil {
		t.Fatal(err)
	}
	return stub, []string{
		"AWS_ACCESS_KEY_ID=" + hostKeyID, "AWS_SECRET_ACCESS_KEY=" + hostSecret, "AWS_ENDPOINT_URL_STS=" + stub.URL(),
		"AWS_TLS=" + stub.TLSAddr(), "AWS_CA=" + ca, "ROLE=" + roleARN,
	}
}

// awsRun runs a command with a grant of the stand-in's role.
func awsRun(t *testing.T, env []string, command ...string) (string, error) {
	t.Helper()
	state := t.TempDir()
	workspace := t.TempDir()
	agent := func(args ...string) (string, error) {
		cmd := exec.Command(agentPath(t), args...)
		cmd.Env = append(baseEnv(state), env...)
		cmd.Dir = workspace
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := agent("grant", "aws", "--role", roleARN); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	value := func(name string) string {
		for _, entry := range env {
			if v, ok := strings.CutPrefix(entry, name+"="); ok {
				return v
			}
		}
		return ""
	}
	args := []string{"run", "--grant", "aws", "--upstream-ca", value("AWS_CA"), "--resolve", "*=" + value("AWS_TLS"), "--"}
	out, err := agent(append(args, command...)...)
	audit, auditErr := agent("audit", "last")
	if auditErr != nil {
		t.Errorf("audit: %v", auditErr)
	}
	return out + audit, err
}

// A session is renewed in the background at half of its life: a run sees valid
// credentials throughout, though the first ones are long gone.
func TestASessionIsRenewedUnseen(t *testing.T) {
	needRoot(t)
	const lifetime = 6 * time.Second
	stub, env := newAWS(t, lifetime)
	// Until the third session is at hand, every request must succeed.
	script := `
import datetime, json, subprocess, sys
seen = set()
while len(seen) < 3:
    answer = json.loads(subprocess.check_output(["/agentops/helper", "credential", "aws"]))
    left = datetime.datetime.fromisoformat(answer["Expiration"].replace("Z", "+00:00")) - datetime.datetime.now(datetime.timezone.utc)
    if left.total_seconds() < 0:
        sys.exit("served what has expired")
    seen.add(answer["AccessKeyId"])
print("three sessions")
subprocess.check_call(["/usr/bin/aws", "sts", "get-caller-identity"])
`
	out, err := awsRun(t, env, "/usr/bin/python3", "-c", script)
	if err != nil || !strings.Contains(out, "three sessions") || !strings.Contains(out, "assumed-role/AgentRole/agentops-2") {
		t.Errorf("%v\n%s", err, out)
	}
	if calls := stub.AssumeRoleCalls(); calls < 4 || stub.MostAtOnce() != 1 {
		t.Errorf("%d calls of AssumeRole, %d at once", calls, stub.MostAtOnce())
	}
}

// A hundred helpers come while the session is being renewed: they are answered
// from the one at hand, and STS is asked once.
func TestAHundredHelpersDuringARefresh(t *testing.T) {
	needRoot(t)
	stub, env := newAWS(t, 0)
	env = append(env, "PYTHONUNBUFFERED=1")
	script := `
import subprocess
helpers = [subprocess.Popen(["/agentops/helper", "credential", "aws"], stdout=subprocess.PIPE) for _ in range(100)]
answers = {h.communicate()[0] for h in helpers}
print("codes", {h.returncode for h in helpers}, "answers", len(answers))
`
	out, err := awsRun(t, env, "/usr/bin/python3", "-c", script)
	if err != nil || !strings.Contains(out, "codes {0} answers 1\n") {
		t.Errorf("%v\n%s", err, out)
	}
	if n := strings.Count(out, "credential.serve"); n != 100 {
		t.Errorf("%d answers recorded, want 100", n)
	}
	if calls := stub.AssumeRoleCalls(); calls != 2 { // one of the grant's proof
		t.Errorf("%d calls of AssumeRole, want 2", calls)
	}
}
