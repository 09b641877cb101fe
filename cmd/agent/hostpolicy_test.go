package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"agentops/mitm/policy"
)

func TestReadHostPolicy(t *testing.T) {
	for name, c := range map[string]struct{ content, err, hint string }{
		"empty":           {"", "", ""},
		"comment":         {"# nothing\n", "", ""},
		"all":             {"network:\n  policy: strict\n  allow: [a.example, {host: b.example, ports: [443, 8000-8999], methods: [GET], paths: [/x/**]}, tcp: c.example:22]\n  deny: []\n  passthrough: ['*.example:443']\n  max_flows: 100\n  max_header: 64k\n  handshake_timeout: 5s\n  header_timeout: 10s\n  idle_timeout: 1m\ngrants: [a]\nmounts: [/srv]\nworkspaces: [/work]\n", "", ""},
		"misspelt":        {"grants: [a]\nmount: [/srv]\n", `policy.yaml:2: unknown field "mount"`, `"mounts"`},
		"nested":          {"network:\n  resolve: ['a=127.0.0.1']\n", `policy.yaml:2: unknown field "resolve"`, ""},
		"in a rule":       {"network:\n  allow:\n    - host: a\n      method: [GET]\n", `policy.yaml:4: unknown field "method"`, `"methods"`},
		"bad rule":        {"network:\n  allow: ['http://x/']\n", `policy.yaml: rule "http://x/"`, ""},
		"bad passthrough": {"network:\n  passthrough: ['*']\n", "policy.yaml: passthrough: ", ""},
		"bad limit":       {"network:\n  policy: strict\n  max_flows: many\n", `policy.yaml:3: network.max_flows: "many" is no number from 1 to 100000`, ""},
		"misspelt limit":  {"network:\n  max_flow: 1\n", `policy.yaml:2: unknown field "max_flow"`, `"max_flows"`},
		"null limit":      {"network:\n  idle_timeout:\n", `policy.yaml:2: `, ""},
		"bad mode":        {"network:\n  policy: lax\n", `policy.yaml: network policy "lax"`, ""},
		"null list":       {"grants:\n", "policy.yaml:1: there is nothing", "write []"},
		"null network":    {"mounts: []\nnetwork:\n", "policy.yaml:2: there is nothing", "write []"},
		"null rule":       {"network:\n  allow:\n    - a\n    -\n", "policy.yaml:4: there is nothing", ""},
		"relative folder": {"mounts: [data]\n", `folder "data" is not absolute`, ""},
		"two of them":     {"grants: []\n---\ngrants: [a]\n", "one document", ""},
		"no YAML":         {"grants: [\n", "policy.yaml:1: ", ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseHostPolicy("/etc/agentops/policy.yaml", []byte(c.content))
			if c.err == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Fatalf("%v, want an error with %q", err, c.err)
			}
			if hint, ok := errors.AsType[*hintError](err); c.hint != "" && (!ok || !strings.Contains(hint.hint, c.hint)) {
				t.Errorf("%v has no hint with %s", err, c.hint)
			}
		})
	}
}

// A run may leave no more unopened than the host's policy lets it.
func TestTheHostPolicyBoundsPassthrough(t *testing.T) {
	for content, allowed := range map[string]bool{
		"grants: []\n":                              true,
		"network: {passthrough: []}\n":              false,
		"network: {passthrough: [b.example]}\n":     false,
		"network: {passthrough: ['*.b.example']}\n": true,
	} {
		host, err := parseHostPolicy("/etc/agentops/policy.yaml", []byte(content))
		if err != nil {
			t.Fatal(err)
		}
		spec := &runSpec{}
		err = spec.resolveNetwork(networkSettings{Passthrough: []string{"a.b.example"}}, host)
		if (err == nil) != allowed || err != nil && !strings.Contains(err.Error(), "passthrough a.b.example is refused by /etc/agentops/policy.yaml") {
			t.Errorf("%q: %v", content, err)
		}
		if allowed && !spec.policy.PassesThrough("a.b.example", 443) {
			t.Errorf("%q: the host does not pass through", content)
		}
	}
}

// The file binds every run, so it must be root's to write and to take away.
func TestTheHostPolicyIsRootsAlone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	const someone = 65534
	for name, c := range map[string]struct {
		change func(dir, file string) error
		err    string
	}{
		"as it should be":        {func(string, string) error { return nil }, ""},
		"missing":                {func(_, file string) error { return os.Remove(file) }, ""},
		"missing folder":         {func(dir, _ string) error { return os.RemoveAll(dir) }, ""},
		"another's":              {func(_, file string) error { return os.Chown(file, someone, 0) }, "not root's"},
		"written by a group":     {func(_, file string) error { return os.Chmod(file, 0o664) }, "by others"},
		"written by all":         {func(_, file string) error { return os.Chmod(file, 0o646) }, "by others"},
		"in another's folder":    {func(dir, _ string) error { return os.Chown(dir, someone, 0) }, "not root's"},
		"in a group's folder":    {func(dir, _ string) error { return os.Chmod(dir, 0o775) }, "by others"},
		"missing, in all's":      {func(dir, file string) error { return errors.Join(os.Remove(file), os.Chmod(dir, 0o777)) }, "by others"},
		"a link":                 {func(_, file string) error { return errors.Join(os.Rename(file, file+"2"), os.Symlink(file+"2", file)) }, "too many levels"},
		"a folder that's a link": {func(dir, _ string) error { return errors.Join(os.Rename(dir, dir+"2"), os.Symlink(dir+"2", dir)) }, "neither a folder"},
		"a folder":               {func(_, file string) error { return errors.Join(os.Remove(file), os.Mkdir(file, 0o755)) }, "neither a folder"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "etc")
			file := filepath.Join(dir, "policy.yaml")
			err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(file, []byte("grants: []\n"), 0o644), c.change(dir, file))
			if err != nil {
				t.Fatal(err)
			}
			_, err = (&env{hostPolicy: file}).readHostPolicy()
			if (c.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%v, want %q", err, c.err)
			}
		})
	}
}

func TestTheHostPolicyNarrows(t *testing.T) {
	var none *hostPolicy
	if err := errors.Join(none.checkGrant("a"), none.checkMount("mount", "/x"), none.checkWorkspace("/x")); err != nil {
		t.Errorf("no policy refuses: %v", err)
	}
	h, err := parseHostPolicy("/p", []byte("network: {policy: strict, allow: [a.example], deny: [b.example]}\ngrants: [a]\nmounts: [/srv/data]\nworkspaces: []\n"))
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"b": h.checkGrant("b"), "/srv/database": h.checkMount("mount", "/srv/database"), "/srv": h.checkMount("mount", "/srv"), "/w": h.checkWorkspace("/w")} {
		if err == nil || !strings.Contains(err.Error(), "/p") || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := errors.Join(h.checkGrant("a"), h.checkMount("mount", "/srv/data"), h.checkMount("mount", "/srv/data/x")); err != nil {
		t.Error(err)
	}
	allow, err := policy.ParseRules([]string{"*", "tcp:*"})
	if err != nil {
		t.Fatal(err)
	}
	p := policy.Policy{Mode: policy.Permissive, Allow: allow}
	h.narrow(&p)
	if p.Mode != policy.Strict || p.Source != "/p" {
		t.Errorf("the run is %s by %q", p.Mode, p.Source)
	}
	for target, want := range map[policy.Target]policy.Reason{
		{Host: "a.example", Port: 443, Protocol: policy.HTTP}:    "",
		{Host: "a.example", Port: 443, Protocol: policy.NotHTTP}: policy.Opaque,
		{Host: "b.example", Port: 443, Protocol: policy.HTTP}:    policy.Denied,
		{Host: "c.example", Port: 443, Protocol: policy.HTTP}:    policy.NotAllowed,
	} {
		if v := p.Decide(target); v.Reason != want || want != "" && v.Source != "/p" {
			t.Errorf("%+v is %+v, want %q", target, v, want)
		}
	}
}

func FuzzSettings(f *testing.F) {
	for _, seed := range []string{
		"", "name: x\n", "network:\n  policy: strict\n  allow: [a.example, {host: b, ports: [443], methods: [GET], paths: [/x/**]}, tcp: c:22]\n",
		"grants: [&a b, *a]\n", "network: {allow: [~]}\n", "network:\n", "a: &a [*a]\n", "<<: {name: x}\n", "network: {allow: [[a]]}\n", "mounts: [/a]\n---\n", "network: !!str x\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, content string) {
		if s, err := parseSettings("/w/agent.yaml", []byte(content)); err == nil {
			for _, rule := range append(s.Network.Allow, s.Network.Deny...) {
				if again, err := policy.ParseRule(rule.String()); err != nil || again.String() != rule.String() {
					t.Errorf("there is a rule %q in %q: %v", rule, content, err)
				}
			}
		}
		if h, err := parseHostPolicy("/etc/policy.yaml", []byte(content)); err == nil {
			p := policy.Policy{Mode: policy.Permissive}
			h.narrow(&p)
			if h.Network.Allow != nil && len(h.Network.Allow) == 0 && p.DecideHost("a.example").Allowed {
				t.Errorf("nothing is allowed by %q, and a host is", content)
			}
		}
	})
}
