package audit

import (
	"errors"
	"path/filepath"
	"testing"
)

// Of a group that could not be written, Failed tells, and whoever records next.
func TestAGroupThatCannotBeWritten(t *testing.T) {
	j, err := Create(filepath.Join(t.TempDir(), "journal.jsonl"), "run-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Append(RunStart{}); err != nil {
		t.Fatal(err)
	}
	if err := j.file.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Append(HTTPRequest{}); err != nil {
		t.Fatal(err)
	}
	<-j.Failed()
	for _, e := range []Event{HTTPRequest{}, FlowOpen{}} {
		if err := j.Append(e); err == nil || !errors.Is(err, j.Err()) {
			t.Errorf("%s: %v, want %v", e.Type(), err, j.Err())
		}
	}
	if seal, err := j.Seal(&RunExit{}, nil); err == nil || seal.Lines != 1 {
		t.Errorf("sealed with %d lines, %v", seal.Lines, err)
	}
}
