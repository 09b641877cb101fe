package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"agentops/credsrv/grant"
	"agentops/test/awsstub"

	"github.com/goccy/go-yaml"
)

const testRole = "arn:aws:iam::123456789012:role/AgentRole"

// grantBench calls the program with a state folder of its own.
type grantBench struct {
	*testing.T
	dir   string
	uid   int
	stdin *os.File
	env   map[string]string
}

// newGrantBench also points the AWS SDK, which reads the process's own variables,
// at nothing.
func newGrantBench(t *testing.T) *grantBench {
	dir := t.TempDir()
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "")
			os.Unsetenv(name)
		}
	}
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(dir, "aws-config"))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(dir, "aws-credentials"))
	t.Setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1") // nothing listens there
	return &grantBench{T: t, dir: dir}
}

func (b *grantBench) run(args ...string) (code int, stdout, stderr string) {
	b.Helper()
	var out, errs bytes.Buffer
	code = run(&env{
		args: append([]string{"grant"}, args...), stdin: b.stdin, stdout: &out, stderr: &errs, dir: b.dir, uid: b.uid,
		getenv: func(name string) string {
			if value, ok := b.env[name]; ok {
				return value
			}
			return map[string]string{"AGENTOPS_STATE_DIR": filepath.Join(b.dir, "state"), "AGENTOPS_RUN_DIR": filepath.Join(b.dir, "run")}[name]
		},
	})
	return code, out.String(), errs.String()
}

func (b *grantBench) ok(args ...string) (stdout, stderr string) {
	b.Helper()
	code, stdout, stderr := b.run(args...)
	if code != 0 {
		b.Fatalf("agent grant %q: exit code %d, %s", args, code, stderr)
	}
	return stdout, stderr
}

// refused checks that a command ends with 125 and says what is wrong and what
// to do.
func (b *grantBench) refused(message, hint string, args ...string) {
	b.Helper()
	code, stdout, stderr := b.run(args...)
	if code != exitOurs {
		b.Errorf("agent grant %q: exit code %d", args, code)
	}
	if stdout != "" {
		b.Errorf("agent grant %q: stdout %q", args, stdout)
	}
	first, second, _ := strings.Cut(stderr, "\n")
	if !strings.HasPrefix(first, "agent: error: ") || !strings.Contains(first, message) {
		b.Errorf("agent grant %q: %q, want an error with %q", args, stderr, message)
	}
	if !strings.HasPrefix(second, "agent: hint: ") || !strings.Contains(second, hint) || strings.Count(stderr, "\n") != 2 {
		b.Errorf("agent grant %q: %q, want a hint with %q", args, stderr, hint)
	}
}

func (b *grantBench) store() grant.Store {
	return grant.Store{Dir: filepath.Join(b.dir, "state", "grants")}
}

func (b *grantBench) loadAWS(name string) (grant.AWS, error) {
	g, err := b.store().Load(name)
	if err != nil {
		return grant.AWS{}, err
	}
	return g.(grant.AWS), nil
}

func (b *grantBench) write(name, content string) {
	b.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name), []byte(content), 0o600); err != nil {
		b.Fatal(err)
	}
}

func TestGrantAWSUnverified(t *testing.T) {
	b := newGrantBench(t)
	b.write("policy.json", "{\n  \"Version\": \"2012-10-17\",\n  \"Statement\": []\n}\n")
	stdout, stderr := b.ok("aws", "--role", testRole, "--no-verify")
	if stderr != "" || !strings.Contains(stdout, "agent run --grant aws") || !strings.Contains(stdout, "15m") {
		t.Errorf("got %q, %q", stdout, stderr)
	}
	_, stderr = b.ok("aws", "--no-verify", "--role", "arn:aws:iam::123456789012:role/a:b/R", "--name", "deploy", "--region", "eu-west-1",
		"--session-duration", "2h", "--external-id", "ticket/1", "--aws-profile", "team", "--session-policy", "policy.json",
		"--policy-arn", "arn:aws:iam::aws:policy/a", "--policy-arn", "arn:aws:iam::123456789012:policy/b")
	if !strings.HasPrefix(stderr, "agent: warning: ") || !strings.Contains(stderr, "capped at 1h, and 2h is refused") {
		t.Errorf("of 2h it says %q", stderr)
	}
	a, err := b.store().Load("deploy")
	if err != nil {
		t.Fatal(err)
	}
	want := `{"version":1,"kind":"aws","name":"deploy","role_arn":"arn:aws:iam::123456789012:role/a:b/R","region":"eu-west-1",` +
		`"session_duration_seconds":7200,"external_id":"ticket/1","aws_profile":"team",` +
		`"session_policy":"{\"Version\":\"2012-10-17\",\"Statement\":[]}",` +
		`"policy_arns":["arn:aws:iam::aws:policy/a","arn:aws:iam::123456789012:policy/b"],"verified":null}`
	if got, _ := json.Marshal(a); string(got) != want {
		t.Errorf("stored\n%s, want\n%s", got, want)
	}
	stdout, _ = b.ok("show", "deploy", "--json")
	var compact bytes.Buffer
	if err := json.Compact(&compact, []byte(stdout)); err != nil || compact.String() != want {
		t.Errorf("show prints %s, %v", compact.String(), err)
	}
}

func TestGrantAWSRefused(t *testing.T) {
	b := newGrantBench(t)
	b.write("empty.json", "")
	b.write("space.json", " \n")
	b.write("array.json", "[]")
	b.write("long.json", strings.Repeat(" ", maxPolicyFile)+"{}")
	b.write("wide.json", `{"Sid":"`+strings.Repeat("x", 2048)+`"}`)
	arn := func(text string) []string { return []string{"--role", text} }
	with := func(args ...string) []string { return append(arn(testRole), args...) }
	bad := []struct {
		name          string
		args          []string
		message, hint string
	}{
		{"no role", nil, "no role was given", "--role arn:aws:iam::"},
		{"empty role", arn(""), "no role was given", "--role"},
		{"partition", arn("arn:awx:iam::123456789012:role/R"), `no partition "awx"`, "aws-cn"},
		{"service", arn("arn:aws:s3::123456789012:role/R"), `the service is "s3"`, "iam::123456789012:role/R"},
		{"11 digits", arn("arn:aws:iam::12345678901:role/R"), "is not 12 digits", "zeros"},
		{"empty name", arn("arn:aws:iam::123456789012:role/"), "name is empty", "role/NAME"},
		{"session", arn("arn:aws:sts::123456789012:assumed-role/R/me"), "session of a role", "iam::123456789012:role/R"},
		{"user", arn("arn:aws:iam::123456789012:user/me"), "is a user", "examples/grant-aws"},
		{"region in it", arn("arn:aws:iam:us-east-1:123456789012:role/R"), "a region in it", "--region"},
		{"service-linked", arn("arn:aws:iam::123456789012:role/aws-service-role/x/R"), "service-linked", "of your own"},
		{"duration -1h", with("--session-duration", "-1h"), "out of range", "15m to 12h"},
		{"duration 0", with("--session-duration", "0"), "0s is out of range", "15m to 12h"},
		{"duration 14m59s", with("--session-duration", "14m59s"), "out of range", "15m to 12h"},
		{"duration 12h1s", with("--session-duration", "12h1s"), "out of range", "15m to 12h"},
		{"duration abc", with("--session-duration", "abc"), `"abc" is not a duration`, "15m to 12h"},
		{"duration empty", with("--session-duration", ""), `"" is not a duration`, "15m to 12h"},
		{"region", with("--region", "cn-north-1"), "partition aws-cn", "us-east-1"},
		{"external id", with("--external-id", "a b"), `external id "a b"`, "2 to 1224"},
		{"external id empty", with("--external-id", ""), "--external-id is empty", "leave it out"},
		{"name", with("--name", "../x"), `"../x" cannot be the name`, "a-z"},
		{"name empty", with("--name="), "--name is empty", "leave it out"},
		{"profile empty", with("--aws-profile="), "--aws-profile is empty", ""},
		{"region empty", with("--region="), "--region is empty", ""},
		{"policy flag empty", with("--session-policy="), "--session-policy is empty", ""},
		{"policy missing", with("--session-policy", "gone.json"), "no such file", "IAM policy"},
		{"policy folder", with("--session-policy", "."), "is a directory", "IAM policy"},
		{"policy empty", with("--session-policy", "empty.json"), "empty.json is empty", "IAM policy"},
		{"policy space", with("--session-policy", "space.json"), "not JSON", "IAM policy"},
		{"policy array", with("--session-policy", "array.json"), "not an object", "IAM policy"},
		{"policy long", with("--session-policy", "long.json"), "longer than any policy", ""},
		{"policy wide", with("--session-policy", "wide.json"), "2058 characters", "shorten"},
		{"policy endless", with("--session-policy", "/dev/zero"), "longer than any policy", ""},
		{"policy ARN", with("--policy-arn", "ReadOnlyAccess"), "is not an ARN", "arn:aws:iam::aws:policy/NAME"},
		{"policy ARN empty", with("--policy-arn", ""), "is not an ARN", ""},
	}
	for _, test := range bad {
		b.refused(test.message, test.hint, append([]string{"aws", "--no-verify"}, test.args...)...)
	}
	if _, err := os.Stat(filepath.Join(b.dir, "state")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a state folder was made: %v", err)
	}
	b.ok("aws", "--role", testRole, "--no-verify", "--external-id", "kept")
	for _, test := range bad {
		b.run(append([]string{"aws", "--no-verify"}, test.args...)...)
	}
	if a, err := b.loadAWS("aws"); err != nil || a.ExternalID != "kept" {
		t.Errorf("the old grant is %+v, %v", a, err)
	}
	if grants, err := b.store().List(); err != nil || len(grants) != 1 {
		t.Errorf("there are %v, %v", grants, err)
	}
}

func TestGrantNeedsRoot(t *testing.T) {
	b := newGrantBench(t)
	b.uid = 1000
	for _, args := range [][]string{{"aws", "--role", testRole, "--no-verify"}, {"http", "x"}, {"list"}, {"show", "aws"}, {"revoke", "aws"}} {
		b.refused("agent grant "+args[0]+" needs root", "sudo agent grant "+args[0], args...)
	}
	if _, err := os.Stat(filepath.Join(b.dir, "state")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a state folder was made: %v", err)
	}
}

func TestGrantUnknown(t *testing.T) {
	b := newGrantBench(t)
	for _, command := range []string{"show", "revoke"} {
		b.refused(`grant "aws": there is no such grant`, "no grants yet; make one with agent grant aws --role", command, "aws")
	}
	b.ok("aws", "--role", testRole, "--no-verify", "--name", "one")
	b.ok("aws", "--role", testRole, "--no-verify", "--name", "two")
	for _, command := range []string{"show", "revoke"} {
		for _, name := range []string{"three", "../one", ""} {
			b.refused(fmt.Sprintf("grant %q: there is no such grant", name), "there are: one, two;", command, name)
		}
	}
	b.refused("no command agent grant forget", "revoke", "forget", "one")
}

func TestGrantListShowRevoke(t *testing.T) {
	b := newGrantBench(t)
	if stdout, _ := b.ok("list", "--json"); stdout != "[]\n" {
		t.Errorf("of none it prints %q", stdout)
	}
	b.ok("aws", "--role", testRole, "--no-verify", "--name", "two", "--external-id", "x2")
	b.ok("aws", "--role", "arn:aws-cn:iam::123456789012:role/R", "--no-verify", "--name", "one", "--session-duration", "1h")
	stdout, _ := b.ok("list")
	want := "NAME  KIND  GIVES                                     REGION          SESSION  VERIFIED\n" +
		"one   aws   arn:aws-cn:iam::123456789012:role/R      cn-northwest-1  1h       never\n" +
		"two   aws   arn:aws:iam::123456789012:role/AgentRole  us-east-1       15m      never\n"
	if strings.Join(strings.Fields(stdout), " ") != strings.Join(strings.Fields(want), " ") {
		t.Errorf("the table is\n%s", stdout)
	}
	stdout, _ = b.ok("list", "--json")
	var listed []struct {
		Name string `json:"name"`
	}
	if err := json.Unmarshal([]byte(stdout), &listed); err != nil || len(listed) != 2 || listed[0].Name != "one" {
		t.Errorf("as JSON: %s, %v", stdout, err)
	}
	stdout, _ = b.ok("show", "two")
	for _, part := range []string{testRole, "external id", "x2", "*.amazonaws.com *.api.aws", "never"} {
		if !strings.Contains(stdout, part) {
			t.Errorf("show lacks %q:\n%s", part, stdout)
		}
	}
	if stdout, _ = b.ok("revoke", "two"); stdout != "grant two is revoked\n" {
		t.Errorf("revoke prints %q", stdout)
	}
	if stdout, _ = b.ok("revoke", "one", "--json"); strings.Join(strings.Fields(stdout), "") != `{"revoked":"one"}` {
		t.Errorf("revoke prints %q", stdout)
	}
	if grants, err := b.store().List(); err != nil || len(grants) != 0 {
		t.Errorf("there are %v, %v", grants, err)
	}
}

// A grant that cannot be read hides no other, and can be revoked.
func TestGrantDamaged(t *testing.T) {
	b := newGrantBench(t)
	b.ok("aws", "--role", testRole, "--no-verify")
	b.write("state/grants/bad.json", "{")
	b.refused("bad.json", "agent grant revoke bad", "show", "bad")
	code, stdout, stderr := b.run("list")
	if code != exitOurs || !strings.Contains(stdout, testRole) || !strings.Contains(stderr, "agent: hint: ") {
		t.Errorf("list: %d, %q, %q", code, stdout, stderr)
	}
	b.ok("revoke", "bad")
	b.ok("list")
}

func TestGrantStateUnwritable(t *testing.T) {
	b := newGrantBench(t)
	b.write("state", "a file")
	b.refused("not a directory", "AGENTOPS_STATE_DIR", "aws", "--role", testRole, "--no-verify")
}

// aws starts the stand-in, in which the host is caller.
func (b *grantBench) aws(caller string, config awsstub.Config) *awsstub.Stub {
	b.Helper()
	config.Users = []awsstub.User{{AccessKeyID: "AKIAIOSFODNN7EXAMPLE", SecretAccessKey: "not-shown-anywhere", ARN: caller}}
	stub, err := awsstub.New(config)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { stub.Close() })
	b.Setenv("AWS_ENDPOINT_URL_STS", stub.URL())
	b.identity()
	return stub
}

// identity makes the stand-in's user the host's identity.
func (b *grantBench) identity() {
	b.Setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
	b.Setenv("AWS_SECRET_ACCESS_KEY", "not-shown-anywhere")
}

const (
	hostUser = "arn:aws:iam::123456789012:user/me"
	hostRole = "arn:aws:sts::123456789012:assumed-role/CI/job"
)

func TestGrantAWSProves(t *testing.T) {
	for _, test := range []struct {
		name, caller string
		asked, lasts time.Duration
		warning      string
	}{
		{"user", hostUser, 15 * time.Minute, 15 * time.Minute, ""},
		{"user, 2h", hostUser, 2 * time.Hour, 2 * time.Hour, ""},
		{"role", hostRole, time.Hour, time.Hour, "caps sessions at 1h (role chaining)\n"},
		{"shorter", hostUser, 2 * time.Hour, time.Hour, "the session lasts 1h, not the 2h asked for"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newGrantBench(t)
			config := awsstub.Config{Roles: []awsstub.Role{{ARN: testRole, ExternalID: "ticket", MaxDuration: 2 * time.Hour}}}
			if test.lasts != test.asked {
				config.Lifetime = test.lasts
			}
			b.aws(test.caller, config)
			stdout, stderr := b.ok("aws", "--role", testRole, "--session-duration", test.asked.String(), "--external-id", "ticket", "--json")
			said, warning, _ := strings.Cut(stderr, "\n")
			session := "arn:aws:sts::123456789012:assumed-role/AgentRole/agentops-grant"
			until, ok := strings.CutPrefix(said, "agent: "+test.caller+" assumed "+session+" until ")
			end, err := time.Parse(time.RFC3339, until)
			if left := time.Until(end); !ok || err != nil || left > test.lasts || left < test.lasts-time.Minute {
				t.Errorf("it says %q", said)
			}
			if !strings.Contains(warning, test.warning) || (warning != "") != (test.warning != "") {
				t.Errorf("it warns %q, want %q", warning, test.warning)
			}
			a, err := b.loadAWS("aws")
			if err != nil || a.Verified == nil {
				t.Fatalf("stored %+v, %v", a, err)
			}
			v := *a.Verified
			if v.Caller != test.caller || v.AssumedRole != session || v.Chained != (test.caller == hostRole) || time.Since(v.At) > time.Minute {
				t.Errorf("stored %+v", v)
			}
			shown, _ := b.ok("show", "aws")
			if !strings.Contains(shown, session) || strings.Contains(shown, "role chaining") != v.Chained {
				t.Errorf("show prints %s", shown)
			}
			file, err := os.ReadFile(filepath.Join(b.store().Dir, "aws.json"))
			if err != nil {
				t.Fatal(err)
			}
			for _, secret := range []string{"ASIA", "FwoG", "AKIA", "not-shown-anywhere"} { // session, its token, the host's
				if strings.Contains(string(file)+stdout+stderr+shown, secret) {
					t.Errorf("%s is stored or shown", secret)
				}
			}
		})
	}
}

// A role that cannot be assumed is not stored, and takes no other's place: the
// user is told why, and what to do.
func TestGrantAWSNotProved(t *testing.T) {
	b := newGrantBench(t)
	b.refused("find the host's AWS credentials", "the host has no AWS credentials: tried were AWS_ACCESS_KEY_ID, ", "aws", "--role", testRole)
	b.refused("team", `"team" gives no credentials`, "aws", "--role", testRole, "--aws-profile", "team")
	b.identity()
	b.refused("connection refused", "STS could not be reached", "aws", "--role", testRole)
	b.aws(hostUser, awsstub.Config{Roles: []awsstub.Role{{ARN: testRole, ExternalID: "ticket"}}})
	b.refused("AccessDenied", "trust policy of "+testRole+" names "+hostUser+", and that this may sts:AssumeRole it; no external id was sent", "aws", "--role", testRole)
	b.refused("AccessDenied", "an external id was sent", "aws", "--role", testRole, "--external-id", "other")
	b.refused("MaxSessionDuration", "lower --session-duration, or raise MaxSessionDuration", "aws", "--role", testRole, "--external-id", "ticket", "--session-duration", "2h")
	for _, test := range []struct{ code, hint string }{
		{"ExpiredToken", "the host's own AWS credentials have expired: renew them; nothing has to be restarted"},
		{"ExpiredTokenException", "the host's own AWS credentials have expired"},
		{"InvalidClientTokenId", "access key is gone, or it belongs to another partition"},
		{"UnrecognizedClientException", "access key is gone, or it belongs to another partition"},
		{"SignatureDoesNotMatch", "check the host's clock, then its secret"},
		{"RegionDisabledException", "choose another with --region"},
		{"MalformedPolicyDocument", "correct the file of --session-policy"},
		{"PackedPolicyTooLarge", "shorten it"},
		{"Throttling", "STS throttled all of 3 attempts"},
		{"RequestLimitExceeded", "STS throttled all of 3 attempts"},
		{"IDPCommunicationError", "see the message of STS"},
	} {
		failure := awsstub.Failure{Code: test.code, Message: "the message"}
		b.aws(hostUser, awsstub.Config{}).Fail(failure, failure, failure) // of all attempts
		b.refused(test.code+": the message", test.hint, "aws", "--role", testRole)
	}
	if _, err := os.Stat(filepath.Join(b.dir, "state")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a state folder was made: %v", err)
	}
	b.ok("aws", "--role", testRole, "--no-verify", "--external-id", "kept")
	b.aws(hostRole, awsstub.Config{Roles: []awsstub.Role{{ARN: testRole, MaxDuration: 2 * time.Hour}}})
	b.refused("ValidationError", "caps sessions at 1 h (role chaining): lower --session-duration to 1h", "aws", "--role", testRole, "--session-duration", "2h")
	if a, err := b.loadAWS("aws"); err != nil || a.ExternalID != "kept" {
		t.Errorf("the old grant is %+v, %v", a, err)
	}
}

func TestGrantHelp(t *testing.T) {
	b := newGrantBench(t)
	for _, args := range [][]string{{}, {"aws"}, {"list"}, {"show"}, {"revoke"}} {
		stdout, _ := b.ok(append(args, "--help")...)
		if !strings.Contains(stdout, "Examples:\n  agent grant ") {
			t.Errorf("agent grant %q has no example:\n%s", args, stdout)
		}
	}
	if stdout, _ := b.ok(); !strings.Contains(stdout, "revoke") {
		t.Errorf("agent grant prints %q", stdout)
	}
}

const exampleFolder = "../../examples/grant-aws"

func TestExampleSettings(t *testing.T) {
	s, err := readSettings(exampleFolder)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Grants) != 1 || s.Grants[0] != "aws" || len(s.Command) == 0 {
		t.Errorf("it says %+v", s)
	}
	spec := &runSpec{env: s.Env}
	if err := spec.resolveNetwork(s.Network, nil); err != nil {
		t.Error(err)
	}
	if err := spec.resolveView(&env{}, nil, s, nil); err != nil {
		t.Error(err)
	}
}

// The script and the template make the same role.
func TestExampleRole(t *testing.T) {
	const fake = "#!/bin/sh\nwhile [ $# -gt 0 ]; do case $1 in --*-document) printf '%s' \"$2\" >\"$OUT/$1\";; esac; shift; done\necho arn:aws:iam::123456789012:role/AgentRole\n"
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "aws"), []byte(fake), 0o755); err != nil {
		t.Fatal(err)
	}
	script := exec.Command(filepath.Join(exampleFolder, "iam.sh"), "arn:aws:iam::123456789012:user/me", "example-bucket")
	script.Env = []string{"PATH=" + dir + ":" + os.Getenv("PATH"), "OUT=" + dir, "EXTERNAL_ID=ticket/1"}
	said, err := script.CombinedOutput()
	if err != nil || !strings.Contains(string(said), "agent grant aws --role "+testRole+" --external-id ticket/1") {
		t.Fatalf("iam.sh: %v, %s", err, said)
	}
	content, err := os.ReadFile(filepath.Join(exampleFolder, "role.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("!Ref Principal", "arn:aws:iam::123456789012:user/me", "!Ref ExternalId", "ticket/1",
		"!Sub ", "", "${AWS::Partition}", "aws", "${Bucket}", "example-bucket", "!Ref", "", "!GetAtt", "").Replace(string(content))
	var template struct {
		Resources struct {
			Role struct {
				Properties struct {
					Trust    any `yaml:"AssumeRolePolicyDocument"`
					Policies []struct {
						Document any `yaml:"PolicyDocument"`
					} `yaml:"Policies"`
				} `yaml:"Properties"`
			} `yaml:"Role"`
		} `yaml:"Resources"`
	}
	if err := yaml.Unmarshal([]byte(text), &template); err != nil {
		t.Fatal(err)
	}
	role := template.Resources.Role.Properties
	if len(role.Policies) != 1 {
		t.Fatalf("role.yaml has %d policies", len(role.Policies))
	}
	for flag, document := range map[string]any{"--assume-role-policy-document": role.Trust, "--policy-document": role.Policies[0].Document} {
		given, err := os.ReadFile(filepath.Join(dir, flag))
		if err != nil {
			t.Fatal(err)
		}
		var want any
		if err := json.Unmarshal(given, &want); err != nil {
			t.Fatalf("%s of iam.sh: %v", flag, err)
		}
		if wantJSON, gotJSON := mustJSON(t, want), mustJSON(t, document); wantJSON != gotJSON {
			t.Errorf("%s: iam.sh has\n%s, role.yaml\n%s", flag, wantJSON, gotJSON)
		}
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	content, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
