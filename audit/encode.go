package audit

import (
	"bytes"
	"encoding/json"
	"strconv"
)

// encoder writes journal lines as encoding/json does, without escaping HTML. It needs no
// reflection for what there is much of.
type encoder struct {
	line []byte
	buf  *bytes.Buffer
	json *json.Encoder
}

func newEncoder() encoder {
	e := encoder{buf: new(bytes.Buffer)}
	e.json = json.NewEncoder(e.buf)
	e.json.SetEscapeHTML(false)
	return e
}

// encode returns an event's line, newline included, valid until the next call: the
// fields of the header and those of the event, in one object.
func (e *encoder) encode(h Header, event Event) ([]byte, error) {
	e.line = strconv.AppendUint(append(e.line[:0], `{"seq":`...), h.Seq, 10)
	e.string("time", h.Time)
	e.string("run", h.Run)
	e.string("type", h.Type)
	e.string("prev", h.Prev)
	if request, ok := event.(HTTPRequest); ok {
		e.request(&request)
		e.line = append(e.line, "}\n"...)
		return e.line, nil
	}
	e.buf.Reset()
	if err := e.json.Encode(event); err != nil {
		return nil, err
	}
	if body := e.buf.Bytes(); string(body) == "{}\n" {
		e.line = append(e.line, "}\n"...)
	} else {
		e.line = append(append(e.line, ','), body[1:]...)
	}
	return e.line, nil
}

func (e *encoder) request(r *HTTPRequest) {
	e.name("flow")
	e.line = strconv.AppendUint(e.line, r.Flow, 10)
	e.string("protocol", r.Protocol)
	e.string("method", r.Method)
	e.string("url", r.URL)
	e.optional("upstream", r.Upstream)
	for i, grant := range r.Grants {
		if i == 0 {
			e.name("grants")
			e.line = append(e.line, '[')
		} else {
			e.line = append(e.line, ',')
		}
		e.value(grant)
	}
	if len(r.Grants) > 0 {
		e.line = append(e.line, ']')
	}
	e.integer("status", int64(r.Status))
	e.integer("bytes_sent", r.BytesSent)
	e.integer("bytes_received", r.BytesReceived)
	e.integer("duration_ms", r.DurationMS)
	e.optional("user_agent", r.UserAgent)
	e.optional("error", r.Error)
}

func (e *encoder) name(name string) {
	e.line = append(append(append(e.line, `,"`...), name...), `":`...)
}

func (e *encoder) integer(name string, n int64) {
	e.name(name)
	e.line = strconv.AppendInt(e.line, n, 10)
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
			e.line = append(e.line, bytes.TrimSuffix(e.buf.Bytes(), []byte("\n"))...)
			return
		}
	}
	e.line = append(append(append(e.line, '"'), s...), '"')
}
