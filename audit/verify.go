package audit

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// maxLine bounds a line of a journal that is read, in bytes.
const maxLine = 1 << 20

// maxProblems bounds a Report: one changed line may break all that follow.
const maxProblems = 100

// Report is what Verify found.
type Report struct {
	Run      string
	Lines    uint64
	SHA256   string   // of the last line
	Problems []string // in the order of the file; none: the journal holds
}

// Verified says that no line was changed, removed, reordered or cut off.
func (r *Report) Verified() bool { return len(r.Problems) == 0 }

func (r *Report) problem(format string, args ...any) {
	if len(r.Problems) < maxProblems {
		r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
	}
}

// Verify reads a journal and checks its chain, that it begins with run.start and
// ends with run.exit, and, when seal is not nil, that it is as long as it was
// when it was sealed. visit, when not nil, gets every line that is an event; its
// bytes are valid during the call only. The error is one of reading, or visit's.
func Verify(journal io.Reader, seal *Seal, visit func(Header, []byte) error) (*Report, error) {
	v := verifier{report: &Report{SHA256: genesis}}
	lines := bufio.NewReaderSize(journal, maxLine)
	for {
		line, err := lines.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			if len(line) > 0 {
				v.report.problem("line %d is cut off after %d bytes", v.report.Lines+1, len(line))
			}
			break
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			v.report.problem("line %d is longer than %d bytes", v.report.Lines+1, maxLine)
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read the journal: %w", err)
		}
		line = line[:len(line)-1]
		header, ok := v.line(line)
		if ok && visit != nil {
			if err := visit(header, line); err != nil {
				return nil, err
			}
		}
	}
	v.end(seal)
	return v.report, nil
}

type verifier struct {
	report *Report
	last   string // type of the last line
	counts Counts // of the lines so far
}

// line checks one line against the one before it.
func (v *verifier) line(line []byte) (Header, bool) {
	r := v.report
	number := r.Lines + 1
	var e struct {
		Header
		countable
	}
	err := json.Unmarshal(line, &e)
	h := e.Header
	switch {
	case err != nil:
		r.problem("line %d is no event: %v", number, err)
	case h.Seq != r.Lines:
		r.problem("line %d has seq %d, not %d: lines were removed, added or reordered", number, h.Seq, r.Lines)
	case h.Prev != r.SHA256:
		r.problem("line %d does not follow from line %d: one of them was changed", number, number-1)
	case number == 1 && h.Type != "run.start":
		r.problem("line 1 is %s, not run.start", h.Type)
	case number > 1 && h.Type == "run.start":
		r.problem("line %d is a second run.start", number)
	case number > 1 && h.Run != r.Run:
		r.problem("line %d is of run %q", number, h.Run)
	case v.last == "run.exit":
		r.problem("line %d comes after run.exit", number)
	default:
		if _, timeErr := time.Parse(time.RFC3339Nano, h.Time); timeErr != nil {
			r.problem("line %d has no valid time", number)
		}
	}
	if number == 1 {
		r.Run = h.Run
	}
	v.counts.add(h.Type, e.countable)
	if h.Type == "run.exit" && err == nil {
		v.reconcile(line)
	}
	sum := sha256.Sum256(line)
	r.SHA256 = hex.EncodeToString(sum[:])
	r.Lines = number
	v.last = h.Type
	return h, err == nil
}

// reconcile compares what run.exit says of the journal, and of what the kernel saw,
// with the journal.
func (v *verifier) reconcile(line []byte) {
	var exit struct {
		Totals Counts `json:"totals"`
		Kernel Counts `json:"kernel_counts"`
	}
	if err := json.Unmarshal(line, &exit); err != nil {
		v.report.problem("run.exit cannot be read: %v", err)
		return
	}
	if exit.Totals != v.counts {
		v.report.problem("run.exit tells of other events than the journal has: %+v, not %+v", exit.Totals, v.counts)
	}
	for _, difference := range exit.Kernel.Differences(v.counts) {
		v.report.problem("%s", difference)
	}
}

// end checks what only the whole journal shows.
func (v *verifier) end(seal *Seal) {
	r := v.report
	switch {
	case r.Lines == 0:
		r.problem("the journal is empty")
	case seal != nil && seal.Interrupted:
		r.problem("the run was interrupted: its agent ended without sealing the journal")
	case v.last != "run.exit":
		r.problem("the journal does not end with run.exit: the run goes on, its agent was killed, or lines were cut off")
	}
	if seal == nil {
		return
	}
	if seal.Lines != r.Lines {
		r.problem("the journal has %d lines, its seal says %d", r.Lines, seal.Lines)
	}
	if seal.SHA256 != r.SHA256 {
		r.problem("the journal ends with another line than its seal says")
	}
	if seal.Run != r.Run && r.Lines > 0 {
		r.problem("the journal is of run %q, its seal of run %q", r.Run, seal.Run)
	}
}

// Interrupted makes the seal of a journal whose agent was killed.
func Interrupted(run string, journal io.Reader) (Seal, error) {
	report, err := Verify(journal, nil, nil)
	if err != nil {
		return Seal{}, err
	}
	return Seal{Run: run, Lines: report.Lines, SHA256: report.SHA256, Interrupted: true}, nil
}
