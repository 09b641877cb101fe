package audit

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"time"
)

// encoder writes journal lines as encoding/json does, without escaping HTML. It needs no
// reflection for what there is much of.
type encoder struct {
	lines []byte
	buf   *bytes.Buffer
	json  *json.Encoder
}

func newEncoder() encoder {
	e := encoder{buf: new(bytes.Buffer)}
	e.json = json.NewEncoder(e.buf)
	e.json.SetEscapeHTML(false)
	return e
}

// encode adds the line of an event that follows a chain, without a newline: the
// fields of the Header and those of the event, in one object.
func (e *encoder) encode(after *chain, at time.Time, event Event) error {
	e.lines = strconv.AppendUint(append(e.lines, `{"seq":`...), after.lines, 10)
	e.name("time")
	e.lines = append(at.UTC().AppendFormat(append(e.lines, '"'), time.RFC3339Nano), '"')
	e.string("run", after.run)
	e.string("type", event.Type())
	e.name("prev")
	e.lines = append(hex.AppendEncode(append(e.lines, '"'), after.last[:]), '"')
	if request, ok := event.(HTTPRequest); ok {
		e.request(&request)
		e.lines = append(e.lines, '}')
		return nil
	}
	e.buf.Reset()
	if err := e.json.Encode(event); err != nil {
		return err
	}
	body := bytes.TrimSuffix(e.buf.Bytes(), []byte("\n"))[1:]
	if len(body) > 1 {
		e.lines = append(e.lines, ',')
	}
	e.lines = append(e.lines, body...)
	return nil
}

func (e *encoder) request(r *HTTPRequest) {
	e.name("flow")
	e.lines = strconv.AppendUint(e.lines, r.Flow, 10)
	e.string("protocol", r.Protocol)
	e.string("method", r.Method)
	e.string("url", r.URL)
	e.optional("upstream", r.Upstream)
	for i, grant := range r.Grants {
		if i == 0 {
			e.name("grants")
			e.lines = append(e.lines, '[')
		} else {
			e.lines = append(e.lines, ',')
		}
		e.value(grant)
	}
	if len(r.Grants) > 0 {
		e.lines = append(e.lines, ']')
	}
	e.integer("status", int64(r.Status))
	e.integer("bytes_sent", r.BytesSent)
	e.integer("bytes_received", r.BytesReceived)
	e.integer("duration_ms", r.DurationMS)
	e.optional("user_agent", r.UserAgent)
	e.optional("error", r.Error)
}

func (e *encoder) name(name string) {
	e.lines = append(append(append(e.lines, `,"`...), name...), `":`...)
}

func (e *encoder) integer(name string, n int64) {
	e.name(name)
	e.lines = strconv.AppendInt(e.lines, n, 10)
}

func (e *encoder) string(name, value string) {
	e.name(name)
	e.value(value)
}

func (e *encoder) optional(name, value string) {
	if value != "" {
		e.string(name, value)
	}
}

func (e *encoder) value(s string) {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			e.buf.Reset()
			_ = e.json.Encode(s) // a string and a buffer cannot fail
			e.lines = append(e.lines, bytes.TrimSuffix(e.buf.Bytes(), []byte("\n"))...)
			return
		}
	}
	e.lines = append(append(append(e.lines, '"'), s...), '"')
}
