package audit_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"regexp"
	"slices"
	"strings"
	"testing"

	"agentops/audit"
)

var (
	prevField     = regexp.MustCompile(`"prev":"[0-9a-f]{64}"`)
	signatureTail = regexp.MustCompile(`,"key":"[0-9a-f]{16}","signature":"[^"]*"}$`)
)

// rechain makes a chain of lines whatever they say, as who does not have the key
// can, and ends each with a newline.
func rechain(lines ...[]byte) []byte {
	var all []byte
	prev := strings.Repeat("0", 64)
	for _, line := range lines {
		line = prevField.ReplaceAll(bytes.TrimSuffix(line, []byte("\n")), []byte(`"prev":"`+prev+`"`))
		sum := sha256.Sum256(line)
		prev = hex.EncodeToString(sum[:])
		all = append(append(all, line...), '\n')
	}
	return all
}

// resign puts another signature under a line, by whom it likes, that claims to
// be by the key id.
func resign(line []byte, context string, by *audit.Key, id string) []byte {
	line = signatureTail.ReplaceAll(bytes.TrimSuffix(line, []byte("\n")), nil)
	line = append(line, `,"key":"`+id+`"`...)
	signature := by.Sign(append([]byte(context), line...))
	return append(line, `,"signature":"`+base64.StdEncoding.EncodeToString(signature)+`"}`...)
}

// Who has a journal and its seal, but not the key, can make the chain of another
// one; each way to give it out as the host's is found.
func TestForgedJournalsAreFound(t *testing.T) {
	key, other := newKey(t), newKey(t)
	lines, seal := record(t, key, 3)
	last := len(lines) - 1
	forged := bytes.Replace(lines[1], []byte("GET"), []byte("PUT"), 1)
	with := func(end []byte) []byte { return rechain(lines[0], forged, lines[2], lines[3], end) }
	cut := func(content []byte) audit.Seal {
		report := verify(t, content, nil, nil)
		return audit.Seal{Run: report.Run, Lines: report.Lines, SHA256: report.SHA256}
	}
	const context = "agentops journal v1\n"
	whole := rechain(lines...)
	short := rechain(lines[:last]...)
	unsigned := signatureTail.ReplaceAll(lines[last], []byte("}"))
	spelt := bytes.Clone(lines[last]) // the same signature in other letters
	spelt[bytes.LastIndex(spelt, []byte("=="))-1]++
	cases := map[string]struct {
		journal, seal []byte
		problem       string
	}{
		"chain made anew":           {with(lines[last]), nil, "the journal has a signature that key " + key.ID() + " did not make"},
		"signature stripped":        {with(unsigned), nil, "the journal is not signed"},
		"signature of half length":  {with(signatureTail.ReplaceAll(lines[last], []byte(`,"key":"`+key.ID()+`","signature":"aGFsZg=="}`))), nil, "the journal is not signed"},
		"signature spelt otherwise": {rechain(append(slices.Clone(lines[:last]), spelt)...), nil, "the journal is not signed"},
		"another key":               {with(resign(lines[last], context, other, other.ID())), nil, `the journal is signed by key "` + other.ID() + `", not by ` + key.ID()},
		"another key's, as ours":    {with(resign(lines[last], context, other, key.ID())), nil, "the journal has a signature that key " + key.ID() + " did not make"},
		"of another kind":           {rechain(append(slices.Clone(lines[:last]), resign(lines[last], "agentops ledger v1\n", key, key.ID()))...), nil, "the journal has a signature that key"},
		"more than is signed":       {rechain(append(slices.Clone(lines[:last]), append(bytes.Clone(bytes.TrimSuffix(lines[last], []byte("}"))), `,"exit_code":1}`...))...), nil, "the journal is not signed"},
		"cut, with a seal of that":  {short, marshal(t, cut(short), other), `the journal's seal is signed by key "` + other.ID()},
		"cut, with a seal unsigned": {short, append(signatureTail.ReplaceAll(bytes.TrimSpace(marshal(t, cut(short), key)), []byte("}")), '\n'),
			"the journal's seal is not signed"},
		"cut, with the seal changed": {short, bytes.Replace(marshal(t, seal, key), []byte(`"lines":5`), []byte(`"lines":4`), 1),
			"the journal's seal has a signature that key"},
		"a journal's line as seal": {whole, append(bytes.Clone(lines[last]), '\n'), "the journal's seal has a signature that key"},
		"no seal":                  {whole, []byte("{}"), "the journal's seal is not one line"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			report := verify(t, c.journal, c.seal, keysOf(key))
			if report.Verified() || !report.Changed || !strings.Contains(strings.Join(report.Problems, "\n"), c.problem) {
				t.Errorf("problems are %q, want one with %q", report.Problems, c.problem)
			}
		})
	}
	if report := verify(t, whole, nil, audit.Keys{}); report.Verified() || !strings.Contains(report.Problems[0], "there is no key to check that with") {
		t.Errorf("with no key at all: %q", report.Problems)
	}
}

// A run whose agent was killed has no signed end, and is not changed by that, nor
// by the line that was being written; another run is.
func TestInterruptedIsNotChanged(t *testing.T) {
	key := newKey(t)
	lines, whole := record(t, key, 3)
	if report := verify(t, append(rechain(lines...), '{'), marshal(t, whole, key), keysOf(key)); !report.Changed {
		t.Errorf("with a torn line behind its end: %+v", report)
	}
	journal := append(rechain(lines[:3]...), `{"seq":3,"ti`...)
	seal, err := audit.Interrupted("run-1", bytes.NewReader(journal))
	if err != nil {
		t.Fatal(err)
	}
	report := verify(t, journal, marshal(t, seal, key), keysOf(key))
	report.Compare(audit.Entry{Seal: seal})
	if report.Verified() || report.Changed || !strings.Contains(strings.Join(report.Problems, "\n"), "interrupted") {
		t.Errorf("%+v", report)
	}
	report = verify(t, rechain(lines[:2]...), marshal(t, seal, key), keysOf(key))
	if !report.Changed {
		t.Errorf("cut off: %+v", report)
	}
}
