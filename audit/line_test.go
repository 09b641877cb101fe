package audit

import (
	"encoding/json"
	"strings"
	"testing"
)

// However a line is read, it is the same line.
func TestPlainHeader(t *testing.T) {
	const header = `"time":"2026-01-02T03:04:05Z","run":"r","type":"http.request","prev":"p"`
	for line, plain := range map[string]bool{
		`{"seq":7,` + header + `,"flow":1,"url":"https://a/?\"type\":\"x"}`: true,
		`{"seq":7,` + header + `}`:                                  true,
		`{"seq":7,` + header + `,"type":"flow.open"}`:               false,
		`{"seq":7,` + header + `,"seq":8}`:                          false,
		`{"seq":7, ` + header + `}`:                                 false,
		`{"seq":7,"run":"r",` + header + `}`:                        false,
		`{` + header + `,"seq":7}`:                                  false,
		strings.Replace(`{"seq":7,`+header+`}`, `r"`, `\u0072"`, 1): false,
	} {
		h, ok := plainHeader([]byte(line))
		if ok != plain {
			t.Errorf("%s: plain %v", line, ok)
		}
		var want Header
		if err := json.Unmarshal([]byte(line), &want); err != nil {
			t.Fatal(err)
		}
		if ok && h != want {
			t.Errorf("%s: %+v, want %+v", line, h, want)
		}
		if got, _, err := parseLine([]byte(line)); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", line, got, err, want)
		}
	}
}
