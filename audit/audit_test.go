package audit_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"agentops/audit"
)

// newKey makes a host's key.
func newKey(t testing.TB) *audit.Key {
	t.Helper()
	key, err := audit.LoadKey(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func keysOf(keys ...*audit.Key) audit.Keys {
	public := make(audit.Keys)
	for _, key := range keys {
		public.Add(key.Public())
	}
	return public
}

// record writes a journal of n events between run.start and run.exit, signed by
// key, and returns its lines, newlines included but for the last, and its seal.
func record(t testing.TB, key *audit.Key, n int) ([][]byte, audit.Seal) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	j, err := audit.Create(path, "run-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Append(audit.RunStart{Schema: audit.SchemaVersion, Command: []string{"true"}}); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if err := j.Append(audit.HTTPRequest{Flow: uint64(i), Method: "GET", URL: "https://example.com/<a>&b", Status: 200}); err != nil {
			t.Fatal(err)
		}
	}
	seal, err := j.Seal(&audit.RunExit{}, key)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.SplitAfter(data[:len(data)-1], []byte("\n")), seal
}

func marshal(t testing.TB, seal audit.Seal, key *audit.Key) []byte {
	t.Helper()
	content, err := seal.Marshal(key)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func verify(t *testing.T, data, seal []byte, keys audit.Keys) *audit.Report {
	t.Helper()
	report, err := audit.Verify(bytes.NewReader(data), seal, keys, nil)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func TestJournalHolds(t *testing.T) {
	key := newKey(t)
	lines, seal := record(t, key, 5)
	journal := append(bytes.Join(lines, nil), '\n')
	for _, s := range [][]byte{nil, marshal(t, seal, key)} {
		for _, keys := range []audit.Keys{keysOf(key), keysOf(newKey(t), key)} {
			report := verify(t, journal, s, keys)
			if !report.Verified() || report.Lines != 7 || report.Run != "run-1" || !slices.Equal(report.SignedBy, []string{key.ID()}) {
				t.Errorf("seal %s: %+v", s, report)
			}
		}
	}
	if report := verify(t, journal, nil, nil); !report.Verified() || report.SignedBy != nil {
		t.Errorf("without keys: %+v", report)
	}
	var line map[string]any
	if err := json.Unmarshal(lines[1], &line); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{"seq": 1.0, "run": "run-1", "type": "http.request", "method": "GET", "url": "https://example.com/<a>&b", "status": 200.0} {
		if line[key] != want {
			t.Errorf("%s is %v, want %v", key, line[key], want)
		}
	}
}

// Every byte of a journal counts: flip each, one at a time.
func TestEveryChangedByteIsFound(t *testing.T) {
	key := newKey(t)
	lines, seal := record(t, key, 2)
	journal := append(bytes.Join(lines, nil), '\n')
	kept := marshal(t, seal, key)
	flip := func(content []byte, verify func([]byte) *audit.Report) {
		for i := range content {
			changed := bytes.Clone(content)
			changed[i] ^= 1
			if verify(changed).Verified() {
				t.Fatalf("byte %d of %q changed from %q to %q unseen", i, content, content[i], changed[i])
			}
		}
	}
	flip(journal, func(changed []byte) *audit.Report { return verify(t, changed, kept, nil) })
	flip(journal, func(changed []byte) *audit.Report { return verify(t, changed, nil, keysOf(key)) })
	flip(kept, func(changed []byte) *audit.Report { return verify(t, journal, changed, keysOf(key)) })
}

func TestRemovedReorderedAndTruncatedLinesAreFound(t *testing.T) {
	key := newKey(t)
	lines, seal := record(t, key, 5)
	kept := marshal(t, seal, key)
	last := len(lines) - 1
	join := func(parts ...[][]byte) []byte {
		var all []byte
		for _, part := range parts {
			for _, line := range part {
				all = append(append(all, bytes.TrimSuffix(line, []byte("\n"))...), '\n')
			}
		}
		return all
	}
	cases := map[string]struct {
		journal []byte
		seal    []byte
		problem string
	}{
		"first line removed":       {join(lines[1:]), nil, "line 1 has seq 1"},
		"middle line removed":      {join(lines[:3], lines[4:]), nil, "line 4 has seq 4"},
		"lines swapped":            {join(lines[:2], lines[3:4], lines[2:3], lines[4:]), nil, "line 3 has seq 3"},
		"line doubled":             {join(lines[:3], lines[2:]), nil, "line 4 has seq 2"},
		"last line removed":        {join(lines[:last]), nil, "does not end with run.exit"},
		"last lines, with seal":    {join(lines[:last]), kept, "its seal says 7"},
		"cut within a line":        {join(lines)[:len(join(lines))-3], nil, "line 7 is cut off"},
		"nothing left":             {nil, kept, "the journal is empty"},
		"a line that is no JSON":   {join(lines[:last], [][]byte{[]byte("x")}, lines[last:]), nil, "line 7 is no event"},
		"another run's seal":       {join(lines), marshal(t, audit.Seal{Run: "run-2", Lines: seal.Lines, SHA256: seal.SHA256}, key), "its seal of run"},
		"interrupted":              {join(lines[:last]), marshal(t, audit.Seal{Run: "run-1", Interrupted: true}, key), "interrupted"},
		"a line beyond all bounds": {append(bytes.Repeat([]byte("x"), 2<<20), '\n'), nil, "longer than"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			report := verify(t, c.journal, c.seal, keysOf(key))
			if !strings.Contains(strings.Join(report.Problems, "\n"), c.problem) {
				t.Errorf("problems are %q, want one with %q", report.Problems, c.problem)
			}
		})
	}
}

// Names, paths and process names come from the run: none may forge a line.
func TestHostileStringsStayInTheirField(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	j, err := audit.Create(path, "run-1")
	if err != nil {
		t.Fatal(err)
	}
	hostile := "x\n{\"seq\":1,\"type\":\"run.exit\"}\r\n\x1b[2J\u2028\xff\x00"
	if err := errors.Join(j.Append(audit.RunStart{Command: []string{hostile}}), j.Append(audit.DNSQuery{Name: hostile})); err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	seal, err := j.Seal(&audit.RunExit{Kernel: audit.Counts{Datagrams: 1}, Error: hostile}, key)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(data, []byte("\n")); n != 3 {
		t.Errorf("%d lines, want 3", n)
	}
	if bytes.ContainsAny(data, "\x1b\x00\r") {
		t.Errorf("control characters in %q", data)
	}
	if report := verify(t, data, marshal(t, seal, key), keysOf(key)); !report.Verified() {
		t.Errorf("problems: %q", report.Problems)
	}
}

func TestConcurrentAppendsMakeOneChain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	j, err := audit.Create(path, "run-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Append(audit.RunStart{}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				for _, e := range []audit.Event{audit.FlowOpen{Host: "example.com"}, audit.HTTPRequest{}, audit.HTTPRequest{}} {
					if err := j.Append(e); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	key := newKey(t)
	seal, err := j.Seal(&audit.RunExit{Kernel: audit.Counts{Flows: 800}}, key)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if report := verify(t, data, marshal(t, seal, key), keysOf(key)); !report.Verified() || report.Lines != 2402 {
		t.Errorf("%d lines, problems %q", report.Lines, report.Problems)
	}
	lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	var before time.Time
	for i, line := range lines {
		var h struct{ Time time.Time }
		if err := json.Unmarshal(line, &h); err != nil {
			t.Fatal(err)
		}
		if h.Time.Before(before) {
			t.Errorf("line %d is of %s, the one before of %s", i+1, h.Time, before)
		}
		before = h.Time
	}
	var exit audit.RunExit
	if err := json.Unmarshal(lines[len(lines)-1], &exit); err != nil {
		t.Fatal(err)
	}
	if exit.Totals.Flows != 800 || exit.Totals.Requests != 1600 || exit.Totals.Hosts != 1 {
		t.Errorf("totals are %+v", exit.Totals)
	}
}

// What must be recorded before it happens is in the file when Append returns, and all
// that came before it; an http.request alone soon after.
func TestRequestsAreWrittenInGroups(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	j, err := audit.Create(path, "run-1")
	if err != nil {
		t.Fatal(err)
	}
	lines := func() int {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Count(data, []byte("\n"))
	}
	for i := range 3 {
		for _, e := range []audit.Event{audit.HTTPRequest{}, audit.HTTPRequest{}, audit.FlowOpen{}} {
			if err := j.Append(e); err != nil {
				t.Fatal(err)
			}
		}
		if n := lines(); n != 3*i+3 {
			t.Errorf("%d lines are in the file, want %d", n, 3*i+3)
		}
	}
	if err := j.Append(audit.HTTPRequest{}); err != nil {
		t.Fatal(err)
	}
	for lines() < 10 {
		if t.Context().Err() != nil {
			t.Fatal("the last request is not written")
		}
	}
	for range 1000 {
		if err := j.Append(audit.HTTPRequest{URL: strings.Repeat("x", 1000)}); err != nil {
			t.Fatal(err)
		}
	}
	if n := lines(); n < 900 {
		t.Errorf("%d lines are in the file: more wait in memory than may", n)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if n := lines(); n != 1010 {
		t.Errorf("%d lines are in the file after Close", n)
	}
}

// After the first failure nothing may be taken to be recorded.
func TestAFailedJournalTakesNothingMore(t *testing.T) {
	if _, err := audit.Create("/dev/full", "run-1"); err == nil {
		t.Fatal("Create took a file that was there")
	}
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	j, err := audit.Create(path, "run-1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.Seal(&audit.RunExit{}, newKey(t)); err != nil {
		t.Fatal(err)
	}
	if err := j.Append(audit.RunStart{}); !errors.Is(err, audit.ErrSealed) {
		t.Errorf("Append to a sealed journal: %v", err)
	}
	select {
	case <-j.Failed():
		t.Error("a sealed journal counts as failed")
	default:
	}
}

func FuzzVerify(f *testing.F) {
	key := newKey(f)
	lines, seal := record(f, key, 1)
	journal, kept := append(bytes.Join(lines, nil), '\n'), marshal(f, seal, key)
	f.Add(journal, kept)
	f.Add(journal[:len(journal)-2], kept[:len(kept)-2])
	f.Add([]byte(`{"seq":0,"time":"2026-11-23T17:12:00Z","run":"r","type":"run.start","prev":""}`+"\n"), []byte("{}\n"))
	f.Add([]byte("\n\n{}\n"), []byte{})
	f.Add([]byte(`{"type":"run.exit","key":"0123456789abcdef","signature":"}`+"\n"), []byte(`,"key":"0123456789abcdef","signature":""}`))
	f.Fuzz(func(t *testing.T, journal, kept []byte) {
		report, err := audit.Verify(bytes.NewReader(journal), kept, keysOf(key), nil)
		if err != nil {
			t.Fatal(err)
		}
		// The key has signed one journal.
		if report.Verified() && report.SHA256 != seal.SHA256 {
			t.Errorf("%q is verified", journal)
		}
		if report, err = audit.Verify(bytes.NewReader(journal), nil, nil, nil); err != nil {
			t.Fatal(err)
		}
		// Without a way to choose a hash there is no journal of one line
		// that both starts and ends.
		if report.Verified() && report.Lines < 2 {
			t.Errorf("%q is verified", journal)
		}
	})
}
