package test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// selftestReport is what the tests look at of agent selftest --json.
type selftestReport struct {
	Passed     bool
	DurationMS int64 `json:"duration_ms"`
	Applicable int
	Classes    map[string]struct{ Attempts int }
	Totals     struct{ Escaped, Unrecorded, Slow int }
	Control    struct{ Escaped []string }
	Checks     []struct {
		Check, Found string
		OK           bool
	}
	Attempts []struct{ Name, Class, Profile, Verdict, Why string }
}

// names are those of the attempts with a verdict.
func (r *selftestReport) names(verdict string) []string {
	var list []string
	for _, a := range r.Attempts {
		if a.Verdict == verdict {
			list = append(list, a.Name)
		}
	}
	return list
}

// selftest runs an agent's, of the given classes or of all, and returns its
// report and exit code.
func selftest(t *testing.T, agent, state string, classes ...string) (*selftestReport, int) {
	t.Helper()
	args := []string{"selftest", "--json", "-o", filepath.Join(state, "report.json")}
	if len(classes) > 0 {
		args = append(args, "--only", strings.Join(classes, ","))
	}
	cmd := exec.Command(agent, args...)
	cmd.Env = baseEnv(state)
	cmd.Dir = state
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	var report selftestReport
	if jsonErr := json.Unmarshal(out, &report); jsonErr != nil {
		t.Fatalf("agent selftest: %v: %v: %.300s", err, jsonErr, out)
	}
	return &report, cmd.ProcessState.ExitCode()
}

// Nothing gets out of a run on this host, all that is tried is refused at once and
// recorded; and it would be seen if it were otherwise.
func TestSelftest(t *testing.T) {
	needRoot(t)
	agent, state := agentPath(t), t.TempDir()
	report, code := selftest(t, agent, state)
	if code != 0 || !report.Passed {
		t.Errorf("agent selftest: exit code %d", code)
		for _, a := range report.Attempts {
			if a.Verdict != "blocked" && a.Verdict != "not applicable" {
				t.Errorf("%s %s as %s: %s", a.Verdict, a.Name, a.Profile, a.Why)
			}
		}
		for _, c := range report.Checks {
			if !c.OK {
				t.Errorf("%s: %s", c.Check, c.Found)
			}
		}
	}
	if report.Applicable < 80 {
		t.Errorf("%d attempts apply, want at least 80", report.Applicable)
	}
	t.Logf("%d attempts apply, %d arrive without a run, %d ms", report.Applicable, len(report.Control.Escaped), report.DurationMS)
	classes := []string{"address", "transport", "send", "ipv6", "family", "exemption", "tampering", "host", "names",
		"identity", "parsing", "metadata", "credentials", "ca", "journal", "time"}
	for _, class := range classes {
		if report.Classes[class].Attempts == 0 {
			t.Errorf("there is no attempt of the class %s", class)
		}
	}
	// Without a run, most of what sends arrives.
	if len(report.Control.Escaped) < 100 {
		t.Errorf("without a run %d attempts arrive outside, want at least 100: %q", len(report.Control.Escaped), report.Control.Escaped)
	}
	for _, name := range []string{"public-ssh", "v6-public", "udplite", "mptcp", "raw-icmp", "raw-header", "raw-protocol-47", "packet-raw",
		"corked", "af-vsock", "mark-1", "dns-labels", "meta-gcp"} {
		if !slices.Contains(report.Control.Escaped, name) {
			t.Errorf("without a run, %s did not arrive outside", name)
		}
	}
	verifyReport(t, agent, state)
}

// verifyReport checks the report that a selftest has written, and that another
// one is not taken for it.
func verifyReport(t *testing.T, agent, state string) {
	t.Helper()
	path := filepath.Join(state, "report.json")
	verify := func(args ...string) (string, int) {
		cmd := exec.Command(agent, append([]string{"selftest", "verify"}, args...)...)
		cmd.Env = baseEnv(state)
		out, _ := cmd.CombinedOutput()
		return string(out), cmd.ProcessState.ExitCode()
	}
	key := filepath.Join(state, "state", "keys", "audit.pub")
	if out, code := verify(path, "--key", key); code != 0 || !strings.Contains(out, "verified, of ") {
		t.Errorf("agent selftest verify: exit code %d: %.300s", code, out)
	}
	if info, err := os.Stat(filepath.Join(state, "state", "keys", "audit.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the audit key: %v, %v", info, err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	forged := filepath.Join(state, "forged.json")
	changed := strings.Replace(string(content), `"escaped":0`, `"escaped":1`, 1)
	if changed == string(content) {
		t.Fatalf("nothing to change in %.300s", content)
	}
	if err := os.WriteFile(forged, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := verify(forged); code != 1 || !strings.Contains(out, "NOT verified") {
		t.Errorf("agent selftest verify of a changed report: exit code %d: %.300s", code, out)
	}
}

// mutant is an agent whose boundary has a hole, and the attempt that must find it.
type mutant struct {
	name     string
	file     string // of this repository
	old, new string
	class    string
	finds    []string // one of these must have escaped
}

// An agent with a hole in its boundary does not pass its own test.
func TestSelftestFindsHoles(t *testing.T) {
	needRoot(t)
	agentPath(t) // built, with all that is embedded
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			agent := m.build(t)
			report, code := selftest(t, agent, t.TempDir(), m.class)
			if code != 1 || report.Passed {
				t.Errorf("exit code %d, want 1", code)
			}
			escaped := report.names("ESCAPED")
			if !slices.ContainsFunc(m.finds, func(name string) bool { return slices.Contains(escaped, name) }) {
				t.Errorf("escaped: %q, want one of %q", escaped, m.finds)
			}
		})
	}
}

// build builds agent with the mutant's file in place of the repository's own,
// which is left alone.
func (m *mutant) build(t *testing.T) string {
	t.Helper()
	original, err := filepath.Abs(filepath.Join("..", m.file))
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(original)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(content), m.old) != 1 {
		t.Fatalf("%q is not once in %s", m.old, m.file)
	}
	dir := t.TempDir()
	changed, overlay, agent := filepath.Join(dir, "changed"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "agent")
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {original: changed}})
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string][]byte{changed: []byte(strings.Replace(string(content), m.old, m.new, 1)), overlay: replace} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "build", "-overlay", overlay, "-tags", "netgo,osusergo",
		"-ldflags", "-linkmode external -extldflags -static", "-o", agent, "../cmd/agent")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the mutant: %v\n%s", err, out)
	}
	return agent
}

var mutants = []mutant{
	{
		name: "a family let have", file: "runtime/seccomp.go", class: "family",
		old: "unix.AF_UNIX:    {pass},", new: "unix.AF_UNIX: {pass}, unix.AF_VSOCK: {pass},",
		finds: []string{"af-vsock"},
	},
	{
		name: "seccomp off", file: "runtime/seccomp.go", class: "family",
		old: "return append(program, unknown)", new: "return []bpf.Instruction{pass}",
		finds: []string{"af-vsock", "netlink-15"},
	},
	{
		name: "a hidden folder shown", file: "runtime/hidden.go", class: "host",
		old: "\t{\"/root\", \"0700\"},\n", new: "",
		finds: []string{"canary-0-root"},
	},
	{
		// An address of the outside counts as the run's own, like loopback.
		name: "the exemption widened", file: "netns/namespace.go", class: "exemption",
		old:   "Own4 = netip.MustParseAddr(\"198.19.255.254\")",
		new:   "Own4 = netip.MustParseAddr(\"192.175.48.77\")",
		finds: []string{"listen-everywhere"},
	},
	{
		name: "datagrams let out unjudged", file: "mitm/datagram.go", class: "transport",
		old:   "f.refusal = f.judge(policy.Target{Host: f.host(), Protocol: policy.UDP}); f.refusal == nil",
		new:   "_ = policy.UDP; f.refusal == nil",
		finds: []string{"relay-address"},
	},
}
