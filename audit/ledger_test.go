package audit_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"agentops/audit"
)

// enter makes a ledger of n runs, run-0 and on, and returns its path and lines.
func enter(t testing.TB, key *audit.Key, n int) (string, [][]byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ledger.jsonl")
	ledger, err := audit.OpenLedger(path, key)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if err := ledger.Append(audit.Seal{Run: fmt.Sprintf("run-%d", i), Lines: 7, SHA256: strings.Repeat("a", 64)}); err != nil {
			t.Fatal(err)
		}
	}
	content := read(t, path)
	return path, bytes.SplitAfter(content, []byte("\n"))[:n]
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	content, err := audit.ReadLedger(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func verifyLedger(t testing.TB, content []byte, keys audit.Keys) *audit.Report {
	t.Helper()
	report, err := audit.VerifyLedger(bytes.NewReader(content), keys, nil)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// Agents that end at once make one chain.
func TestLedgerHolds(t *testing.T) {
	key := newKey(t)
	path, _ := enter(t, key, 0)
	if report := verifyLedger(t, read(t, path), keysOf(key)); !report.Verified() || report.Lines != 0 {
		t.Errorf("an empty ledger: %+v", report)
	}
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			ledger, err := audit.OpenLedger(path, key)
			if err == nil {
				err = ledger.Append(audit.Seal{Run: fmt.Sprintf("run-%d", i), Interrupted: i == 3})
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	content := read(t, path)
	if report := verifyLedger(t, content, keysOf(key)); !report.Verified() || report.Lines != 16 || len(report.SignedBy) != 1 {
		t.Errorf("%+v", report)
	}
	entry, err := audit.FindEntry(content, "run-3", keysOf(key))
	if err != nil || entry == nil || !entry.Interrupted {
		t.Errorf("run-3 is %+v, %v", entry, err)
	}
	if entry, err := audit.FindEntry(content, "run", keysOf(key)); entry != nil || err != nil {
		t.Errorf("run is %+v, %v", entry, err)
	}
}

// A key that was changed for another signs the lines from then on.
func TestLedgerOfTwoKeys(t *testing.T) {
	first, second := newKey(t), newKey(t)
	path, _ := enter(t, first, 2)
	ledger, err := audit.OpenLedger(path, second)
	if err != nil {
		t.Fatal(err)
	}
	if err := ledger.Append(audit.Seal{Run: "run-2"}); err != nil {
		t.Fatal(err)
	}
	content := read(t, path)
	if report := verifyLedger(t, content, keysOf(first, second)); !report.Verified() || len(report.SignedBy) != 2 {
		t.Errorf("%+v", report)
	}
	if report := verifyLedger(t, content, keysOf(second)); report.Verified() {
		t.Error("the first key is not missed")
	}
}

func TestForgedLedgersAreFound(t *testing.T) {
	key, other := newKey(t), newKey(t)
	_, lines := enter(t, key, 4)
	_, former := enter(t, key, 2) // begun anew since
	const context = "agentops ledger v1\n"
	join := func(lines ...[]byte) []byte {
		return append(bytes.TrimSuffix(bytes.Join(lines, nil), []byte("\n")), '\n')
	}
	changed := bytes.Replace(lines[1], []byte(`"lines":7`), []byte(`"lines":6`), 1)
	cases := map[string]struct {
		ledger  []byte
		problem string
	}{
		"first line removed":   {join(lines[1:]...), "line 1 has seq 1"},
		"middle line removed":  {join(lines[0], lines[2], lines[3]), "line 2 has seq 2"},
		"lines swapped":        {join(lines[0], lines[2], lines[1], lines[3]), "line 2 has seq 2"},
		"of a former ledger":   {join(lines[0], former[1]), "line 2 does not follow from line 1"},
		"line doubled":         {join(lines[0], lines[1], lines[1]), "line 3 has seq 1"},
		"line changed":         {join(lines[0], changed, lines[2]), `line 2, of run "run-1", has a signature that key ` + key.ID() + " did not make"},
		"chain made anew":      {rechain(lines[0], lines[1], bytes.Replace(lines[3], []byte(`"seq":3`), []byte(`"seq":2`), 1)), `line 3, of run "run-3", has a signature that key`},
		"line of another key":  {join(lines[0], resign(changed, context, other, other.ID())), `line 2, of run "run-1", is signed by key "` + other.ID()},
		"signature stripped":   {join(lines[0], signatureTail.ReplaceAll(bytes.TrimSpace(lines[1]), []byte("}"))), `line 2, of run "run-1", is not signed`},
		"a run twice":          {join(lines[0], resign(bytes.Replace(lines[1], []byte("run-1"), []byte("run-0"), 1), context, key, key.ID())), `line 2 is of run "run-0", as line 1 is`},
		"a line that is none":  {join(lines[0], []byte("x")), "line 2 is no entry"},
		"torn":                 {join(lines...)[:len(join(lines...))-9], "line 4 is cut off"},
		"an impossible time":   {join(resign(bytes.Replace(lines[0], []byte(`"time":"`), []byte(`"time":"x`), 1), context, key, key.ID())), "line 1 has no valid time"},
		"longer than any line": {bytes.Repeat([]byte("x"), 2<<20), "line 1 is longer than"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			report := verifyLedger(t, c.ledger, keysOf(key))
			if !strings.Contains(strings.Join(report.Problems, "\n"), c.problem) {
				t.Errorf("problems are %q, want one with %q", report.Problems, c.problem)
			}
		})
	}
	if entry, err := audit.FindEntry(join(lines[0], changed), "run-1", keysOf(key)); entry == nil || err == nil {
		t.Errorf("a forged entry is found as %+v, %v", entry, err)
	}
}

// What was being written when a host died is cut off by the next agent; what it
// cannot continue, it leaves alone.
func TestLedgerIsContinuedAfterATornLine(t *testing.T) {
	key := newKey(t)
	for _, torn := range []string{`{"seq":2,"ti`, "\x00\x00\x00", "{}"} {
		for _, whole := range []int{0, 2} {
			path, lines := enter(t, key, whole)
			if err := os.WriteFile(path, append(bytes.Join(lines, nil), torn...), 0o600); err != nil {
				t.Fatal(err)
			}
			ledger, err := audit.OpenLedger(path, key)
			if err != nil {
				t.Fatal(err)
			}
			if err := ledger.Append(audit.Seal{Run: "next"}); err != nil {
				t.Fatal(err)
			}
			if report := verifyLedger(t, read(t, path), keysOf(key)); !report.Verified() || report.Lines != uint64(whole)+1 {
				t.Errorf("%d lines and %q: %+v", whole, torn, report)
			}
		}
	}
	for content, problem := range map[string]string{
		"x\n":                             "the last line of the ledger",
		"\n":                              "the last line of the ledger",
		strings.Repeat("x", 1<<16):        "does not end with a line",
		strings.Repeat("x", 1<<16) + "\n": "the last line of the ledger",
	} {
		path, _ := enter(t, key, 0)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := audit.OpenLedger(path, key); err == nil || !strings.Contains(err.Error(), problem) || !strings.Contains(err.Error(), path) {
			t.Errorf("%.9q: %v, want %q", content, err, problem)
		}
		if after := read(t, path); string(after) != content {
			t.Errorf("%.9q was changed to %.9q", content, after)
		}
	}
}

// A journal that holds, with its seal, but is not the one that the ledger has.
func TestCompareFindsAnotherJournal(t *testing.T) {
	key := newKey(t)
	lines, seal := record(t, key, 2)
	journal := append(bytes.Join(lines, nil), '\n')
	for problem, c := range map[string]struct {
		seal  []byte
		entry audit.Seal
	}{
		"":                               {marshal(t, seal, key), seal},
		`of run "run-1", not of run "x"`: {marshal(t, seal, key), audit.Seal{Run: "x", Lines: seal.Lines, SHA256: seal.SHA256}},
		"the ledger says 3 and":          {marshal(t, seal, key), audit.Seal{Run: "run-1", Lines: 3, SHA256: seal.SHA256}},
		"the ledger says 4 and bbbbbbb":  {marshal(t, seal, key), audit.Seal{Run: "run-1", Lines: 4, SHA256: strings.Repeat("b", 64)}},
		"the journal's seal is gone":     {nil, seal},
		"another than the ledger says":   {marshal(t, seal, key), audit.Seal{Run: "run-1", Lines: 4, SHA256: seal.SHA256, Interrupted: true}},
	} {
		report := verify(t, journal, c.seal, keysOf(key))
		report.Compare(audit.Entry{Seal: c.entry})
		if report.Verified() != (problem == "") || !strings.Contains(strings.Join(report.Problems, "\n"), problem) {
			t.Errorf("problems are %q, want %q", report.Problems, problem)
		}
	}
}

func FuzzVerifyLedger(f *testing.F) {
	key := newKey(f)
	path, lines := enter(f, key, 2)
	whole := read(f, path)
	head := verifyLedger(f, whole, nil).SHA256
	f.Add(whole)
	f.Add(whole[:len(whole)-2])
	f.Add(lines[1])
	f.Add([]byte(`{"run":"run-1","key":"0123456789abcdef","signature":"}` + "\n\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		report := verifyLedger(t, content, keysOf(key))
		// The key has signed two lines.
		if report.Verified() && report.Lines > 0 && report.SHA256 != head && !bytes.HasPrefix(whole, content) {
			t.Errorf("%q is verified", content)
		}
		if entry, err := audit.FindEntry(content, "run-1", keysOf(key)); err == nil && entry != nil && entry.Lines != 7 {
			t.Errorf("in %q, run-1 is %+v", content, entry)
		}
		// What agents find, they leave whole, but for a torn end.
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := audit.OpenLedger(path, key)
		after := read(t, path)
		if !bytes.HasPrefix(content, after) || bytes.ContainsRune(content[len(after):], '\n') || err != nil && len(after) < len(content) {
			t.Errorf("%q became %q (%v)", content, after, err)
		}
	})
}
