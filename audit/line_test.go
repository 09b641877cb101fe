package audit

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

const plainHeader = `"time":"2026-01-02T03:04:05Z","run":"r","type":"http.request","prev":"p"`

// However a line is read, it is the same line.
func TestPlainRequest(t *testing.T) {
	for line, plain := range map[string]bool{
		`{"seq":7,` + plainHeader + `}`:                                                true,
		`{"seq":0,` + plainHeader + `,"flow":1,"url":"https://a/?type:x","status":0}`:  true,
		`{"seq":7,` + plainHeader + `,"grants":["a","b"],"flow":18446744073709551615}`: true,
		`{"seq":7,` + plainHeader + `,"url":"https://a/?\"type\":\"x"}`:                false,
		`{"seq":7,` + plainHeader + `,"url":"\u00e4"}`:                                 false,
		`{"seq":7,` + plainHeader + `,"url":"ä"}`:                                      false,
		`{"seq":7,` + plainHeader + `,"type":"flow.open"}`:                             false,
		`{"seq":7,` + plainHeader + `,"Run":"x"}`:                                      false,
		`{"seq":7,` + plainHeader + `,"seq":8}`:                                        false,
		`{"seq":7,` + plainHeader + `,"new":1}`:                                        false,
		`{"seq":7,` + plainHeader + `,"status":-1}`:                                    false,
		`{"seq":7,` + plainHeader + `,"grants":[]}`:                                    false,
		`{"seq":7, ` + plainHeader + `}`:                                               false,
		`{"seq":7,` + plainHeader + `} `:                                               false,
		`{"seq":7,"run":"r",` + plainHeader + `}`:                                      false,
		`{` + plainHeader + `,"seq":7}`:                                                false,
		strings.Replace(`{"seq":7,`+plainHeader+`}`, `r"`, `\u0072"`, 1):               false,
		strings.Replace(`{"seq":7,`+plainHeader+`}`, `http.request`, `lost`, 1):        false,
	} {
		h, ok := plainRequest([]byte(line), &Report{Run: "r"})
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
		if got, _, err := new(Report).parse([]byte(line)); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", line, got, err, want)
		}
	}
}

// What is written of an ordinary request is read without encoding/json, whatever
// fields there are.
func TestRequestsAreWrittenPlainly(t *testing.T) {
	for _, request := range []HTTPRequest{{}, everyField(), {URL: strings.Repeat("~ ", 5000)}} {
		e := newEncoder()
		if err := e.encode(&chain{run: "run-1", lines: 1 << 40}, time.Now(), request); err != nil {
			t.Fatal(err)
		}
		h, ok := plainRequest(e.lines, &Report{SHA256: genesis})
		if !ok || h.Run != "run-1" || h.Seq != 1<<40 || h.Prev != genesis {
			t.Errorf("%s: %+v, %v", e.lines, h, ok)
		}
	}
}

func FuzzPlainRequest(f *testing.F) {
	e := newEncoder()
	if err := e.encode(&chain{run: "run-1", lines: 7}, time.Now(), everyField()); err != nil {
		f.Fatal(err)
	}
	f.Add(string(e.lines))
	for _, more := range []string{"", `,"flow":01`, `,"status":0,"flow":18446744073709551616`, `,"grants":["",""]`, `,"url":"\"`, `,"TYPE":"x"`, "}{"} {
		f.Add(`{"seq":7,` + plainHeader + more + `}`)
	}
	f.Fuzz(func(t *testing.T, line string) {
		h, ok := plainRequest([]byte(line), &Report{Run: "r"})
		if !ok {
			return
		}
		var want struct {
			Header
			countable
		}
		if err := json.Unmarshal([]byte(line), &want); err != nil || h != want.Header {
			t.Errorf("%q: %+v, but encoding/json reads %+v, %v", line, h, want.Header, err)
		}
	})
}
