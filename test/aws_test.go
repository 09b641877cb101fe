package test

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"agentops/test/awsstub"
)

const roleARN = "arn:aws:iam::123456789012:role/AgentRole"

// newAWS starts the stand-in and returns the host's AWS environment for it. The keys
// are in no file that a search for them could come across.
func newAWS(t *testing.T, lifetime time.Duration) (*awsstub.Stub, []string) {
	t.Helper()
	id, secret := "AKIA"+rand.Text()[:16], rand.Text()
	stub, err := awsstub.New(awsstub.Config{
		Users:    []awsstub.User{{AccessKeyID: id, SecretAccessKey: secret, ARN: "arn:aws:iam::123456789012:user/host"}},
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
		"AWS_ACCESS_KEY_ID=" + id, "AWS_SECRET_ACCESS_KEY=" + secret, "AWS_ENDPOINT_URL_STS=" + stub.URL(),
		"AWS_TLS=" + stub.TLSAddr(), "AWS_CA=" + ca, "ROLE=" + roleARN,
	}
}

// A session is renewed unseen: while STS is slow to give the next one, a hundred
// programs at once are served the one at hand, for one call of AssumeRole; and when
// the first is long over, all is as before.
func TestASessionIsRenewedUnseen(t *testing.T) {
	needRoot(t)
	stub, env := newAWS(t, 20*time.Second)
	slow := make(chan struct{})
	stub.Fail(awsstub.Failure{}, awsstub.Failure{}, awsstub.Failure{Block: slow}) // after the proof and the first
	state, workspace := t.TempDir(), t.TempDir()
	agent := func(args ...string) *exec.Cmd {
		cmd := exec.Command(agentPath(t), args...)
		cmd.Env, cmd.Dir = append(baseEnv(state), env...), workspace
		return cmd
	}
	if out, err := agent("grant", "aws", "--role", roleARN).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const script = `
import datetime, json, os, subprocess, time, urllib.request
helper = ["/agentops/helper", "credential", "aws"]
endpoint = urllib.request.Request(os.environ["AGENTOPS_CREDENTIAL_URL"] + "/v1/container/aws", headers={"Authorization": open("/agentops/token").read()})
def ask():
    answers = json.loads(subprocess.check_output(helper)), json.load(urllib.request.urlopen(endpoint))
    for answer in answers:
        end = datetime.datetime.fromisoformat(answer["Expiration"].replace("Z", "+00:00"))
        assert end > datetime.datetime.now(datetime.timezone.utc), "served what has expired"
    return {answer["AccessKeyId"] for answer in answers}
first, began = ask(), time.monotonic()
input() # until the session is being renewed
helpers = [subprocess.Popen(helper, stdout=subprocess.PIPE) for _ in range(100)]
answers = {json.loads(h.communicate()[0])["AccessKeyId"] for h in helpers}
print("a hundred got the first:", answers == first == ask(), flush=True)
while time.monotonic() < began + 20:
    last = ask()
    time.sleep(0.1)
print("the last is another:", len(last) == 1 and last != first, flush=True)
subprocess.check_call(["/usr/bin/aws", "sts", "get-caller-identity"])
`
	caFile, tlsAddr := "", ""
	for _, entry := range env {
		switch name, value, _ := strings.Cut(entry, "="); name {
		case "AWS_CA":
			caFile = value
		case "AWS_TLS":
			tlsAddr = value
		}
	}
	run := agent("run", "--grant", "aws", "--upstream-ca", caFile, "--resolve", "*="+tlsAddr, "--", "/usr/bin/python3", "-c", script)
	run.Stderr = os.Stderr
	stdin, err := run.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := run.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewScanner(stdout)
	expect := func(line string) {
		t.Helper()
		if !said.Scan() || said.Text() != line {
			t.Errorf("it says %q, want %q", said.Text(), line)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := stub.AwaitAssumeRole(ctx, 3); err != nil {
		t.Error(err)
	}
	fmt.Fprintln(stdin, "renewing")
	expect("a hundred got the first: True")
	if calls := stub.AssumeRoleCalls(); calls != 3 {
		t.Errorf("%d calls of AssumeRole, want 3", calls)
	}
	close(slow)
	expect("the last is another: True")
	rest := ""
	for said.Scan() {
		rest += said.Text()
	}
	if err := run.Wait(); err != nil || !strings.Contains(rest, "assumed-role/AgentRole/agentops-2") {
		t.Errorf("%v, the CLI says %s", err, rest)
	}
	if most := stub.MostAtOnce(); most != 1 {
		t.Errorf("%d calls of AssumeRole at once", most)
	}
	audit, err := agent("audit", "last").CombinedOutput()
	if served := strings.Count(string(audit), "aws by process 200"); err != nil || served <= 100 {
		t.Errorf("%d helpers recorded, %v\n%s", served, err, audit)
	}
}
