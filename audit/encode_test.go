package audit

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

// everyField is a request with every field set, whatever fields there are.
func everyField() (all HTTPRequest) {
	for i, v := 0, reflect.ValueOf(&all).Elem(); i < v.NumField(); i++ {
		switch f := v.Field(i); f.Kind() {
		case reflect.String:
			f.SetString(v.Type().Field(i).Name)
		case reflect.Slice:
			f.Set(reflect.ValueOf([]string{"a", "b"}))
		case reflect.Uint64:
			f.SetUint(1<<64 - 1 - uint64(i))
		default:
			f.SetInt(1<<31 - int64(i))
		}
	}
	return all
}

// What is written without reflection is what encoding/json would write.
func TestLinesAreThoseOfEncodingJSON(t *testing.T) {
	events := []Event{HTTPRequest{}, everyField(), HTTPRequest{Grants: []string{"b\""}, Status: -1, BytesSent: -1, BytesReceived: -1, DurationMS: -1 << 63}, HTTPRequest{Grants: []string{}}, RunStart{}, FlowOpen{Host: "<a>"}, FlowClose{Error: "\x1b"}}
	for _, s := range []string{`"`, `\`, "<a>&'", "a\nb\r\t\b\f\x00\x1f\x7f", "\xff\xfe", "\u2028\u2029", "\u00e4\U0001f600", "~ ", strings.Repeat("x", 10000)} {
		events = append(events, HTTPRequest{URL: s, Grants: []string{s, s}, UserAgent: s, Error: s, Method: s})
	}
	e := newEncoder()
	for _, event := range events {
		h := Header{Seq: 7, Time: "2026-01-02T03:04:05.6Z", Run: "run-1", Type: event.Type(), Prev: strings.Repeat("ab", 32)}
		after := chain{run: h.Run, lines: h.Seq, last: [32]byte(bytes.Repeat([]byte{0xab}, 32))}
		at := time.Date(2026, 1, 2, 4, 4, 5, 6e8, time.FixedZone("", 3600))
		e.lines = e.lines[:0]
		if err := e.encode(&after, at, event); err != nil {
			t.Fatal(err)
		}
		var want bytes.Buffer
		encoder := json.NewEncoder(&want)
		encoder.SetEscapeHTML(false)
		for _, v := range []any{h, event} {
			if err := encoder.Encode(v); err != nil {
				t.Fatal(err)
			}
		}
		joined := strings.TrimSuffix(strings.ReplaceAll(strings.Replace(want.String(), "}\n{", ",", 1), ",}\n", "}\n"), "\n")
		if string(e.lines) != joined {
			t.Errorf("%s, want %s", e.lines, joined)
		}
	}
}
