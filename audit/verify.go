package audit

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// maxLine bounds a line of a journal that is read, in bytes.
const maxLine = 1 << 20

// maxProblems bounds a Report: one changed line may break all that follow.
const maxProblems = 100

// Report is what Verify or VerifyLedger found.
type Report struct {
	Run    string // none for a ledger
	Lines  uint64
	SHA256 string // of the last line
	// SignedBy are the identifiers of the keys whose signatures are valid.
	// None, though the journal holds: signatures were not checked.
	SignedBy []string
	Problems []string // in the order of the file; none: the journal holds
	// Changed: of the problems, one at least came after the end of the run. That
	// it was interrupted, or that its counts differ, did not.
	Changed bool

	seal *Seal
	torn bool // there is something behind the last line
}

// Verified says that there is no problem: no line was changed, removed, reordered
// or cut off since the key in SignedBy signed. Without one, only the chain is
// known to be whole, which whoever can write the file can make it.
func (r *Report) Verified() bool { return len(r.Problems) == 0 }

// Problemf adds a problem.
func (r *Report) Problemf(format string, args ...any) {
	if len(r.Problems) < maxProblems {
		r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
	}
}

func (r *Report) changed(format string, args ...any) {
	r.Problemf(format, args...)
	r.Changed = true
}

// signed adds who has signed, of a check that may not have been made.
func (r *Report) signed(id string) {
	if id != "" && !slices.Contains(r.SignedBy, id) {
		r.SignedBy = append(r.SignedBy, id)
	}
}

// advance takes a line as the last one so far.
func (r *Report) advance(line []byte) {
	r.SHA256 = hashLine(line)
	r.Lines++
}

func hashLine(line []byte) string {
	sum := sha256.Sum256(line)
	return string(hex.AppendEncode(make([]byte, 0, 2*len(sum)), sum[:]))
}

// Verify reads a journal and checks its chain, that it begins with run.start and
// ends with run.exit, and that this is signed. When seal is not nil, it is the
// content of the file that keeps it: the journal must be as it was when it was
// sealed. Unless keys is nil, one of them must have signed journal and seal.
// visit, when not nil, gets every line that is an event; its bytes are valid
// during the call only. The error is one of reading, or visit's.
func Verify(journal io.Reader, seal []byte, keys Keys, visit func(Header, []byte) error) (*Report, error) {
	v := verifier{report: &Report{SHA256: genesis}, keys: keys}
	err := v.report.read(journal, func(line []byte) error {
		header, ok := v.line(line)
		if ok && visit != nil {
			return visit(header, line)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	v.end(seal)
	return v.report, nil
}

// read gives each whole line, without its newline, to a function that advances
// the report.
func (r *Report) read(from io.Reader, visit func([]byte) error) error {
	lines := bufio.NewReaderSize(from, maxLine)
	for {
		line, err := lines.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF):
			if len(line) > 0 {
				r.Problemf("line %d is cut off after %d bytes", r.Lines+1, len(line))
				r.torn = true
			}
			return nil
		case errors.Is(err, bufio.ErrBufferFull):
			r.changed("line %d is longer than %d bytes", r.Lines+1, maxLine)
			return nil
		case err != nil:
			return fmt.Errorf("read line %d: %w", r.Lines+1, err)
		}
		if err := visit(line[:len(line)-1]); err != nil {
			return err
		}
	}
}

type verifier struct {
	report *Report
	keys   Keys
	last   string // type of the last line
	counts Counts // of the lines so far
	signer string // of the last line
	signed error  // what is wrong with its signature
}

// line checks one line against the one before it.
func (v *verifier) line(line []byte) (Header, bool) {
	r := v.report
	number := r.Lines + 1
	h, counted, err := r.parse(line)
	switch {
	case err != nil:
		r.changed("line %d is no event: %v", number, err)
	case h.Seq != r.Lines:
		r.changed("line %d has seq %d, not %d: lines were removed, added or reordered", number, h.Seq, r.Lines)
	case h.Prev != r.SHA256:
		r.changed("line %d does not follow from line %d: one of them was changed", number, number-1)
	case number == 1 && h.Type != "run.start":
		r.changed("line 1 is %s, not run.start", h.Type)
	case number > 1 && h.Type == "run.start":
		r.changed("line %d is a second run.start", number)
	case number > 1 && h.Run != r.Run:
		r.changed("line %d is of run %q", number, h.Run)
	case v.last == "run.exit":
		r.changed("line %d comes after run.exit", number)
	case !validTime(h.Time):
		r.changed("line %d has no valid time", number)
	}
	if number == 1 {
		r.Run = h.Run
	}
	v.counts.add(h.Type, counted)
	if h.Type == "run.exit" && err == nil {
		v.reconcile(line)
	}
	r.advance(line)
	v.last = h.Type
	if h.Type == "run.exit" {
		v.signer, v.signed = v.keys.check(journalContext, line)
	}
	return h, err == nil
}

// parse reads of a line what is verified.
func (r *Report) parse(line []byte) (Header, countable, error) {
	// Most lines are of requests, of which that is the header alone.
	if h, ok := plainRequest(line, r); ok {
		return h, countable{}, nil
	}
	var e struct {
		Header
		countable
	}
	err := json.Unmarshal(line, &e)
	return e.Header, e.countable, err
}

// reconcile compares what run.exit says of the journal, and of what the kernel saw,
// with the journal.
func (v *verifier) reconcile(line []byte) {
	var exit struct {
		Totals Counts `json:"totals"`
		Kernel Counts `json:"kernel_counts"`
	}
	if err := json.Unmarshal(line, &exit); err != nil {
		v.report.Problemf("run.exit cannot be read: %v", err)
		return
	}
	if exit.Totals != v.counts {
		v.report.Problemf("run.exit tells of other events than the journal has: %+v, not %+v", exit.Totals, v.counts)
	}
	for _, difference := range exit.Kernel.Differences(v.counts) {
		v.report.Problemf("%s", difference)
	}
}

func validTime(text string) bool {
	_, err := time.Parse(time.RFC3339Nano, text)
	return err == nil
}

// end checks what only the whole journal shows.
func (v *verifier) end(seal []byte) {
	r := v.report
	if seal != nil {
		v.seal(seal)
	}
	switch {
	case r.Lines == 0:
		r.Problemf("the journal is empty")
	case r.seal != nil && r.seal.Interrupted:
		r.Problemf("the run was interrupted: its agent ended without sealing the journal")
	case v.last != "run.exit":
		r.Problemf("the journal does not end with run.exit: the run goes on, its agent was killed, or lines were cut off")
	case v.signed != nil:
		r.changed("the journal %v", v.signed)
	default:
		r.signed(v.signer)
	}
}

// seal holds the journal against its seal.
func (v *verifier) seal(content []byte) {
	r := v.report
	seal, err := ParseSeal(content, v.keys)
	if err != nil {
		r.changed("%v", err)
		return
	}
	r.seal = &seal
	if r.torn && !seal.Interrupted {
		r.Changed = true
	}
	if seal.Lines != r.Lines {
		r.changed("the journal has %d lines, its seal says %d", r.Lines, seal.Lines)
	}
	if seal.SHA256 != r.SHA256 {
		r.changed("the journal ends with another line than its seal says")
	}
	if seal.Run != r.Run && r.Lines > 0 {
		r.changed("the journal is of run %q, its seal of run %q", r.Run, seal.Run)
	}
}

// Compare checks that a journal, read with its seal, is the one that the ledger
// has.
func (r *Report) Compare(e Entry) {
	switch {
	case r.Run != e.Run && r.Lines > 0:
		r.changed("the journal is of run %q, not of run %q", r.Run, e.Run)
	case r.Lines != e.Lines || r.SHA256 != e.SHA256:
		r.changed("the journal has %d lines and ends with %.12s, the ledger says %d and %.12s", r.Lines, r.SHA256, e.Lines, e.SHA256)
	case r.seal == nil:
		r.changed("the journal's seal is gone")
	case *r.seal != e.Seal:
		r.changed("the journal's seal is another than the ledger says")
	}
}
