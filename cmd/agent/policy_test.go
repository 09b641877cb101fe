package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"agentops/audit"
	"agentops/mitm/policy"

	"github.com/goccy/go-yaml"
)

// policyBench calls agent policy in a folder of its own, with a host's policy.
type policyBench struct {
	*testing.T
	dir, state, host string
}

func newPolicyBench(t *testing.T) *policyBench {
	b := &policyBench{T: t, dir: t.TempDir(), state: t.TempDir()}
	b.host = filepath.Join(b.state, "policy.yaml")
	return b
}

func (b *policyBench) write(path, content string) {
	b.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		b.Fatal(err)
	}
}

func (b *policyBench) run(args ...string) (code int, stdout, stderr string) {
	b.Helper()
	var out, errs bytes.Buffer
	code = run(&env{
		args: append([]string{"policy"}, args...), stdout: &out, stderr: &errs, dir: b.dir, uid: os.Geteuid(), hostPolicy: b.host,
		getenv: func(name string) string { return map[string]string{"AGENTOPS_STATE_DIR": b.state}[name] },
	})
	return code, out.String(), errs.String()
}

func TestPolicyCheck(t *testing.T) {
	b := newPolicyBench(t)
	b.write(filepath.Join(b.dir, workspaceFile), `network:
  policy: strict
  allow:
    - a.example:443
    - tcp: db.example:5432
    - {host: api.example, methods: [GET, HEAD], paths: [/v1/**]}
    - 127.0.0.1:8080
    - "*.pinned.example"
    - udp: "*:123"
  deny: [bad.example]
  resolve: ["x.pinned.example=127.0.0.1", "y.pinned.example=127.0.0.2"]
`)
	b.write(b.host, "network: {deny: ['GET,POST api.example/v1/secret', 127.0.0.2]}\n")
	const own, host = "agent.yaml", "policy.yaml"
	for _, c := range []struct {
		args string
		code int
		want verdict // what is to be in it
	}{
		{"https://a.example", 0, verdict{Rule: "a.example:443", File: own}},
		{"https://A.EXAMPLE.:443/x?y", 0, verdict{Rule: "a.example:443", File: own}},
		{"http://a.example/", 1, verdict{Reason: policy.NotAllowed, File: own, Hint: "agent run --allow a.example:80"}},
		{"a.example:443", 0, verdict{Rule: "a.example:443", File: own}},
		{"tcp:a.example:443", 1, verdict{Reason: policy.Opaque, Hint: "--allow tcp:a.example:443"}},
		{"tcp:db.example:5432", 0, verdict{Rule: "tcp:db.example:5432", File: own}},
		{"udp:db.example:5432", 1, verdict{Reason: policy.NotAllowed, Hint: "udp:db.example:5432"}},
		{"udp:db.example:123", 0, verdict{Rule: "udp:*:123", File: own}},
		{"udp:y.pinned.example:123", 1, verdict{Reason: policy.Denied, Rule: "127.0.0.2", File: host}},
		{"udp:10.0.0.1:123", 1, verdict{Reason: policy.Address, Hint: "agent run --allow udp:10.0.0.1:123"}},
		{"udp:127.0.0.1:8080", 1, verdict{Reason: policy.NotAllowed}},
		{"https://api.example/v1/x", 0, verdict{Rule: "GET,HEAD api.example /v1/**", File: own}},
		{"https://api.example/v1/x --method POST", 1, verdict{Reason: policy.NotAllowed, Detail: "POST api.example:443/v1/x", Hint: "'POST api.example:443 /v1/x'"}},
		{"https://api.example/v1/../x", 1, verdict{Reason: policy.Malformed, Detail: "dot segment"}},
		{"https://api.example/v1/secret", 1, verdict{Reason: policy.Denied, Rule: "GET,POST api.example/v1/secret", File: host}},
		{"api.example:443", 0, verdict{}},
		{"api.example:443 --method DELETE", 1, verdict{Reason: policy.NotAllowed}},
		{"https://bad.example", 1, verdict{Reason: policy.Denied, Rule: "bad.example", File: own}},
		{"http://127.0.0.1:8080/", 0, verdict{Rule: "127.0.0.1:8080"}},
		{"http://127.0.0.1:8081/", 1, verdict{Reason: policy.NotAllowed}},
		{"http://x.pinned.example/", 0, verdict{Rule: "*.pinned.example"}},
		{"http://y.pinned.example/", 1, verdict{Reason: policy.Denied, Rule: "127.0.0.2", File: host}},
		{"http://127.1/", 125, verdict{}},
		{"a.example", 125, verdict{}},
		{"a.example:0", 125, verdict{}},
		{"ftp://a.example/", 125, verdict{}},
		{"tcp:a.example:1 --method GET", 125, verdict{}},
		{"a.example:443 b.example:443", 125, verdict{}},
		{"--policy /nowhere a.example:443", 125, verdict{}},
	} {
		code, stdout, stderr := b.run(append([]string{"check", "--json"}, strings.Fields(c.args)...)...)
		if code != c.code {
			t.Errorf("%s: exit code %d, want %d\n%s%s", c.args, code, c.code, stdout, stderr)
			continue
		}
		if code == exitOurs {
			continue
		}
		var got verdict
		if err := json.Unmarshal([]byte(stdout), &got); err != nil {
			t.Fatal(err)
		}
		rule := c.want.Rule == "" || got.Rule == c.want.Rule
		if got.Allowed != (code == 0) || got.Reason != c.want.Reason || !rule || !strings.HasSuffix(got.File, c.want.File) ||
			!strings.Contains(got.Detail, c.want.Detail) || !strings.Contains(got.Hint, c.want.Hint) {
			t.Errorf("%s: %+v, want %+v", c.args, got, c.want)
		}
	}
	// In words.
	if _, stdout, _ := b.run("check", "https://a.example/"); stdout != "allowed: https://a.example/: by the rule \"a.example:443\" of "+filepath.Join(b.dir, own)+"\n" {
		t.Errorf("it says %q", stdout)
	}
	if _, stdout, _ := b.run("check", "http://a.example/"); !strings.Contains(stdout, "refused: http://a.example/: not-allowed: no rule allows a.example:80 (strict by ") || !strings.Contains(stdout, "\nto allow it: agent run --allow a.example:80\n") {
		t.Errorf("it says %q", stdout)
	}
}

func TestPolicyCheckByAFileAlone(t *testing.T) {
	b := newPolicyBench(t)
	b.write(b.host, "network: {deny: ['*']}\n")
	block := filepath.Join(b.dir, "block.yaml")
	b.write(block, "network: {policy: permissive, allow: [a.example], deny: [c.example]}\n")
	hosts := filepath.Join(b.dir, "policy.yaml")
	b.write(hosts, "network: {allow: [a.example], deny: [c.example]}\ngrants: []\nworkspaces: [/w]\n")
	for file, want := range map[string][3]int{block: {0, 0, 1}, hosts: {0, 1, 1}} {
		for i, host := range []string{"a.example", "b.example", "c.example"} {
			if code, stdout, stderr := b.run("check", "--policy", file, "https://"+host); code != want[i] {
				t.Errorf("%s by %s: %d %s%s", host, file, code, stdout, stderr)
			}
		}
	}
}

func TestPolicySuggest(t *testing.T) {
	b := newPolicyBench(t)
	folder := filepath.Join(b.state, runsFolder, "r1")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	journal, err := audit.Create(filepath.Join(folder, journalName), "r1")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []audit.Event{
		audit.RunStart{Name: "build", Policy: audit.Policy{Resolve: []string{"*=127.0.0.1"}}},
		audit.FlowOpen{Flow: 1, Protocol: "tls", Host: "a.example", Port: 443},
		audit.HTTPRequest{Flow: 1, Method: "GET", URL: "https://a.example/v1/a%20b?x=/y"},
		audit.HTTPRequest{Flow: 1, Method: "HEAD", URL: "https://a.example/v1/a%20b"},
		audit.HTTPRequest{Flow: 1, Method: "GET", URL: "https://a.example/v2"},
		audit.FlowOpen{Flow: 2, Protocol: "http", Host: "203.0.113.1", Port: 8080},
		audit.HTTPRequest{Flow: 2, Method: "GET", URL: "http://a.example:8080/a//b"},
		audit.HTTPRequest{Flow: 2, Method: "OPTIONS", URL: "http://c.example:8080*"},
		audit.FlowOpen{Flow: 3, Protocol: "opaque", Host: "2001:db8::1", Port: 22},
		audit.FlowClose{Flow: 3, Upstream: "[2001:db8::1]:22"},
		audit.FlowOpen{Flow: 4, Protocol: "tls", Host: "db.example", Port: 5432},
		audit.FlowClose{Flow: 4, Upstream: "192.0.2.1:5432"},
		audit.FlowOpen{Flow: 5, Protocol: "tls", Host: "quiet.example", Port: 443},
		audit.FlowClose{Flow: 5},
		audit.FlowOpen{Flow: 6, Protocol: "udp", Host: "ntp.example", Port: 123},
		audit.FlowOpen{Flow: 7, Protocol: "dns", Host: "9.9.9.9", Port: 53},
		audit.FlowOpen{Flow: 8, Protocol: "tls", Host: "no.example", Port: 443},
		audit.Refused{Flow: 8, Protocol: "http", Host: "no.example", Port: 443, Method: "PUT", URL: "https://no.example/x", Reason: "not-allowed"},
		audit.FlowOpen{Flow: 9, Protocol: "opaque", Host: "no.example", Port: 22},
		audit.Refused{Flow: 9, Protocol: "opaque", Host: "no.example", Port: 22, Reason: "opaque"},
		audit.Refused{Protocol: "udp", Host: "sip.example", Port: 5060, Reason: audit.ReasonProtocol},
		audit.Refused{Protocol: "udp", Host: "sip.example", Port: 5061, Reason: "not-allowed"},
		audit.Refused{Protocol: "udp", Host: "bad.example", Port: 5061, Reason: "denied"},
		audit.Refused{Protocol: "udp", Host: "224.0.0.251", Port: 5353, Reason: audit.ReasonProtocol},
		audit.Refused{Protocol: "udp", Host: "255.255.255.255", Port: 67, Reason: audit.ReasonProtocol},
		audit.FlowOpen{Flow: 10, Protocol: "http", Host: "bad.example", Port: 80},
		audit.Refused{Flow: 10, Protocol: "http", Host: "bad.example", Port: 80, Method: "GET", URL: "http://bad.example/", Reason: "denied"},
	} {
		if err := journal.Append(e); err != nil {
			t.Fatal(err)
		}
	}
	key, err := audit.LoadKey(filepath.Join(b.state, keysFolder))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := journal.Seal(&audit.RunExit{Kernel: audit.Counts{Flows: 9, Relayed: 2, KernelRefused: 3}}, key); err != nil {
		t.Fatal(err)
	}
	hosts := []string{"a.example:443,8080", "c.example:8080", "quiet.example:443", "tcp:[2001:db8::1]:22", "tcp:db.example:5432", "udp:ntp.example:123"}
	for flags, want := range map[string][]string{
		"":          hosts,
		"--refused": {"a.example:443,8080", "c.example:8080", "no.example:443", "quiet.example:443", "tcp:[2001:db8::1]:22", "tcp:db.example:5432", "tcp:no.example:22", "udp:ntp.example:123", "udp:sip.example:5060,5061"},
		"--paths": {"GET a.example:443 /v2", "GET,HEAD a.example:443 /v1/a%20b", "a.example:8080", "c.example:8080", "quiet.example:443",
			"tcp:[2001:db8::1]:22", "tcp:db.example:5432", "udp:ntp.example:123"},
	} {
		code, stdout, stderr := b.run(append([]string{"suggest", "build"}, strings.Fields(flags)...)...)
		if code != 0 || stderr != "" {
			t.Fatalf("%q: exit code %d: %s", flags, code, stderr)
		}
		var s suggestion
		if err := yaml.Unmarshal([]byte(stdout), &s); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(s.Network.Allow, "\n"); got != strings.Join(want, "\n") || s.Network.Policy != policy.Strict || len(s.Network.Resolve) != 1 {
			t.Errorf("%q suggests\n%s", flags, stdout)
		}
		settings, err := parseSettings("agent.yaml", []byte(stdout))
		if err != nil || len(settings.Network.Allow) != len(want) {
			t.Errorf("agent.yaml does not take %s: %v", stdout, err)
		}
	}
	if code, stdout, _ := b.run("suggest", "r1", "--json"); code != 0 || !strings.Contains(stdout, `"policy": "strict"`) {
		t.Errorf("as JSON: %d %s", code, stdout)
	}
	if code, _, stderr := b.run("suggest", "r2"); code != exitOurs || !strings.Contains(stderr, "there is no run") {
		t.Errorf("of no run: %d %s", code, stderr)
	}
}
