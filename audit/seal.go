package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Seal is a finished journal's length and last hash. It is kept outside the
// journal, so that lines cut from its end are missed.
type Seal struct {
	Run    string `json:"run"`
	Lines  uint64 `json:"lines"`
	SHA256 string `json:"sha256"` // of the last line, without its newline
	// Interrupted: the agent ended before it could write run.exit; the seal
	// was made later, over what it had written.
	Interrupted bool `json:"interrupted,omitempty"`
}

// Marshal returns the seal as it is kept in a file: a signed line.
func (s Seal) Marshal(key *Key) ([]byte, error) {
	line, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode the seal: %w", err)
	}
	return append(key.signLine(sealContext, line), '\n'), nil
}

// ParseSeal reads what Marshal returned. Unless keys is nil, one of them must have
// signed it.
func ParseSeal(content []byte, keys Keys) (Seal, error) {
	var s Seal
	line, whole := bytes.CutSuffix(content, []byte("\n"))
	if !whole || bytes.ContainsRune(line, '\n') {
		return s, errors.New("the journal's seal is not one line")
	}
	if _, err := keys.check(sealContext, line); err != nil {
		return s, fmt.Errorf("the journal's seal %w", err)
	}
	if err := json.Unmarshal(line, &s); err != nil {
		return s, fmt.Errorf("the journal's seal is none: %w", err)
	}
	return s, nil
}

// Interrupted makes the seal of a journal whose agent was killed.
func Interrupted(run string, journal io.Reader) (Seal, error) {
	report, err := Verify(journal, nil, nil, nil)
	if err != nil {
		return Seal{}, err
	}
	return Seal{Run: run, Lines: report.Lines, SHA256: report.SHA256, Interrupted: true}, nil
}
