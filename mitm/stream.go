package mitm

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2/hpack"
)

// stream is one exchange of HTTP/2. Its request goes to the upstream by one half, its
// response to the client by the other.
type stream struct {
	exchange
	head     head
	toClient half
	whole    bool // the request ends with its head

	sent, received atomic.Int64  // of the bodies
	state          atomic.Uint32 // what has gone out to its end
	over           atomic.Bool

	mu       sync.Mutex
	toUp     *half // nil: not yet
	answered bool  // the response has begun
	local    bool  // it is ours, or the upstream wants nothing more: it ends the stream
	retried  bool
	status   int
	upstream string

	// Of who reads the client.
	length, got int64 // of the request's body; noLength: not said
	// Of who reads the upstream.
	resLength, resGot int64
}

const (
	requestSent  = 1
	responseSent = 2
)

func (s *stream) outgoing() *half {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.toUp
}

// data takes what has come of a body.
func (s *stream) data(from *link, h *half, p []byte, last bool) error {
	length, got := &s.resLength, &s.resGot
	if h == &s.toClient {
		length, got = &s.length, &s.got
	}
	*got += int64(len(p))
	if *length != noLength && (*got > *length || last && *got < *length) {
		return from.end.broken(from, h.id, h, &connectionError{codeProtocol, "a body that is not as long as its Content-Length"})
	}
	s.relay(from, h, p, nil, last)
	return nil
}

// trail takes the trailer of a body, which is its end.
func (s *stream) trail(from *link, h *half, trailer []hpack.HeaderField) error {
	if len(trailer) == 0 || h == &s.toClient && s.length != noLength && s.got != s.length {
		return s.data(from, h, nil, true)
	}
	s.relay(from, h, nil, append([]hpack.HeaderField(nil), trailer...), true)
	return nil
}

// relay sends on what has come of a body to the other side.
func (s *stream) relay(from *link, h *half, p []byte, trailer []hpack.HeaderField, last bool) {
	to := &s.toClient
	if h == to {
		to = s.outgoing()
	}
	if to != nil {
		from.touch(to.link, to.link.write(to, p, trailer, last))
		return
	}
	from.credit(h, int64(len(p))) // of a request that is answered already
	if last && s.state.Or(requestSent)&responseSent != 0 {
		s.finish(nil)
	}
}

// passed is told what has gone out of a half, or is not wanted: as much may come again.
func (s *stream) passed(to *half, n int64, dropped bool) {
	if to == &s.toClient {
		if !dropped {
			s.received.Add(n)
		}
		if from := s.outgoing(); from != nil {
			from.link.credit(from, n)
		}
		return
	}
	if !dropped {
		s.sent.Add(n)
	}
	s.toClient.link.credit(&s.toClient, n)
}

// ended is told that all of a half went out.
func (s *stream) ended(to *half) {
	if to != &s.toClient {
		if s.state.Or(requestSent)&responseSent != 0 {
			s.finish(nil)
		}
		return
	}
	s.mu.Lock()
	local := s.local
	s.mu.Unlock()
	client := to.link
	client.mu.Lock()
	received := to.received
	client.mu.Unlock()
	if before := s.state.Or(responseSent); before&requestSent != 0 || local || received && s.outgoing() == nil {
		if !received {
			client.reset(to.id, codeNone)
		}
		s.finish(nil)
	}
}

// finish takes the stream out of the books and writes its record. An error says why it
// did not come to its end.
func (s *stream) finish(err error) {
	if s.over.Swap(true) {
		return
	}
	s.toClient.link.forget(&s.toClient)
	if up := s.outgoing(); up != nil {
		up.link.forget(up)
	}
	s.mu.Lock()
	if err != nil {
		s.err = err
	}
	s.exchange.status, s.exchange.upstream = s.status, s.upstream
	s.exchange.sent, s.exchange.received = s.sent.Load(), s.received.Load()
	s.mu.Unlock()
	if s.record() != nil {
		_ = s.flow.conn.socket.Close() // nothing goes on without
	}
	s.flow.proxy.open.Done()
}

// cancel ends a stream whose client does not want it any more.
func (s *stream) cancel(err error) {
	if up := s.outgoing(); up != nil && !s.over.Load() {
		up.link.reset(up.id, codeCancel)
	}
	s.finish(err)
}

// fail ends a stream whose upstream has failed: by an answer, if it has not begun to.
// retry: the upstream has not seen it.
func (s *stream) fail(err error, code errorCode, retry bool) {
	s.mu.Lock()
	answered := s.answered
	if retry = retry && s.whole && !answered && !s.retried; retry {
		s.retried = true
	}
	s.mu.Unlock()
	switch {
	case s.over.Load():
	case retry:
		go s.flow.http2().connect(s, true)
	case answered || code == codeHTTP1 || code == codeRefused:
		s.toClient.link.reset(s.toClient.id, code)
		s.finish(err)
	default:
		s.answer(s.failed(err))
	}
}

// answer sends an answer of ours, unless what is to be recorded of it could not be.
func (s *stream) answer(p problem, unrecorded error) {
	kind, text, err := s.document(p)
	if unrecorded != nil || err != nil {
		_ = s.flow.conn.socket.Close()
		return
	}
	s.mu.Lock()
	s.answered, s.local, s.status = true, true, p.Status
	s.mu.Unlock()
	fields := []hpack.HeaderField{
		{Name: ":status", Value: strconv.Itoa(p.Status)}, {Name: "date", Value: time.Now().UTC().Format(http.TimeFormat)},
		{Name: "content-type", Value: kind}, {Name: "content-length", Value: strconv.Itoa(len(text))},
	}
	l := s.toClient.link
	if s.request.method == http.MethodHead {
		l.send(&s.toClient, fields, true)
	} else {
		l.send(&s.toClient, fields, false)
		l.write(&s.toClient, text, nil, true)
	}
	l.flush()
}

// respond takes the head of a response.
func (s *stream) respond(from *link, fields []hpack.HeaderField, end bool) error {
	res, err := responseHead(fields)
	if err != nil {
		return err
	}
	client := s.toClient.link
	if res.status < 200 {
		if end {
			return malform("an interim response that ends its stream")
		}
		from.touch(client, client.send(&s.toClient, res.fields, false))
		return nil
	}
	s.resLength = res.length
	if s.request.method == http.MethodHead || res.status == http.StatusNoContent || res.status == http.StatusNotModified {
		s.resLength = noLength
	} else if end && res.length > 0 {
		return malform("a body that is not as long as its Content-Length")
	}
	s.mu.Lock()
	s.answered, s.status = true, res.status
	s.mu.Unlock()
	from.touch(client, client.send(&s.toClient, res.fields, end))
	return nil
}

// ofOneConnection tells fields that have nothing to look for in HTTP/2 (RFC 9113, section
// 8.2.2).
func ofOneConnection(name string) bool {
	switch name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade", "http2-settings":
		return true
	}
	return false
}

// checkField checks the name and value of a field (RFC 9113, section 8.2.1).
func checkField(f *hpack.HeaderField) error {
	if !httpguts.ValidHeaderFieldName(f.Name) {
		return malform(fmt.Sprintf("the field name %q is no token", clip(f.Name, 40)))
	}
	for i := range len(f.Name) {
		if c := f.Name[i]; c >= 'A' && c <= 'Z' {
			return malform(fmt.Sprintf("the field name %q is not in lower case", clip(f.Name, 40)))
		}
	}
	if !httpguts.ValidHeaderFieldValue(f.Value) {
		return malform(fmt.Sprintf("a control character in the field %s", clip(f.Name, 40)))
	}
	return nil
}

// checkTrailer checks what follows a body.
func checkTrailer(fields []hpack.HeaderField) error {
	for i := range fields {
		f := &fields[i]
		if strings.HasPrefix(f.Name, ":") {
			return malform("the field " + clip(f.Name, 40) + " in a trailer")
		}
		if err := checkField(f); err != nil {
			return err
		}
		if fieldKind(f.Name).framing() || ofOneConnection(f.Name) {
			return malform("the field " + f.Name + " in a trailer")
		}
	}
	return nil
}

// parseHeaders reads the head of a request of HTTP/2 (RFC 9113, section 8.3), as
// strictly as parseRequest that of HTTP/1.
func (h *head) parseHeaders(fields []hpack.HeaderField) error {
	*h = head{minor: 1, length: noLength, fields: h.fields[:0]}
	var pseudo [4]*string // :method, :scheme, :authority, :path
	names := [...]string{":method", ":scheme", ":authority", ":path"}
fields:
	for i := range fields {
		f := &fields[i]
		if strings.HasPrefix(f.Name, ":") {
			if len(h.fields) > 0 {
				return malform("the field " + clip(f.Name, 40) + " behind others")
			}
			for n, name := range names {
				if f.Name != name {
					continue
				}
				if pseudo[n] != nil {
					return malform("there are two fields " + name)
				}
				pseudo[n] = &f.Value
				continue fields
			}
			return malform(fmt.Sprintf("the field %q is not known", clip(f.Name, 40)))
		}
		if err := checkField(f); err != nil {
			return err
		}
		if ofOneConnection(f.Name) {
			return malform("the field " + f.Name + " is of one connection, and not for HTTP/2")
		}
		kind := fieldKind(f.Name)
		switch kind {
		case teField:
			if f.Value != "trailers" {
				return malform("a TE that is not trailers")
			}
		case lengthField:
			before := h.length
			if err := h.note(field{kind, f.Name, f.Value}); err != nil {
				return err
			}
			if before != noLength {
				return malform("there are two fields content-length")
			}
		case hostField:
			if h.authority != "" {
				return malform("there are two fields host")
			}
			h.authority = f.Value
		case expectField, trailerField:
			if err := h.note(field{kind, f.Name, f.Value}); err != nil {
				return err
			}
		}
		h.fields = append(h.fields, field{kind, f.Name, f.Value})
	}
	value := func(n int) string {
		if pseudo[n] == nil {
			return ""
		}
		return *pseudo[n]
	}
	if h.method = value(0); !httpguts.ValidHeaderFieldName(h.method) {
		return malform(fmt.Sprintf("the method %q is no token", clip(h.method, 40)))
	}
	if named := value(2); pseudo[2] != nil {
		if h.authority != "" && hostPort("https", h.authority) != hostPort("https", named) {
			return malform(fmt.Sprintf("there are :authority %q and Host %q", clip(named, 80), clip(h.authority, 80)))
		}
		h.authority = named
	}
	if strings.Contains(h.authority, "@") || h.authority != "" && !httpguts.ValidHostHeader(h.authority) {
		return malform(fmt.Sprintf("the host %q is none", clip(h.authority, 80)))
	}
	if h.method == http.MethodConnect {
		if pseudo[1] != nil || pseudo[3] != nil {
			return malform("CONNECT with a path")
		}
		return nil
	}
	if scheme := value(1); scheme != "http" && scheme != "https" {
		return malform(fmt.Sprintf("the scheme %q is not of HTTP", clip(scheme, 40)))
	}
	h.target = value(3)
	if !strings.HasPrefix(h.target, "/") && h.target != "*" {
		return malform("the path does not begin with a slash")
	}
	for i := range len(h.target) {
		if c := h.target[i]; c <= ' ' || c == 0x7f {
			return malform("a blank or control character in the path")
		}
	}
	return h.parseTarget()
}

// response is the head of a response, without what is of one connection.
type response struct {
	status int
	length int64
	fields []hpack.HeaderField
}

// responseHead reads one (RFC 9113, section 8.3.2).
func responseHead(fields []hpack.HeaderField) (response, error) {
	r := response{length: noLength}
	if len(fields) == 0 || fields[0].Name != ":status" {
		return r, malform("there is no :status")
	}
	status, err := strconv.ParseUint(fields[0].Value, 10, 16)
	if err != nil || len(fields[0].Value) != 3 || status < 100 || status == http.StatusSwitchingProtocols {
		return r, malform(fmt.Sprintf("the status %q is none", clip(fields[0].Value, 40)))
	}
	r.status = int(status)
	kept := fields[:1]
	for i := range fields[1:] {
		f := &fields[i+1]
		if err := checkField(f); err != nil {
			return r, err
		}
		if ofOneConnection(f.Name) {
			continue
		}
		if f.Name == "content-length" {
			n, err := strconv.ParseUint(f.Value, 10, 63)
			if err != nil || r.length != noLength && r.length != int64(n) {
				return r, malform(fmt.Sprintf("the Content-Length %q is no number", clip(f.Value, 40)))
			}
			r.length = int64(n)
		}
		kept = append(kept, *f)
	}
	r.fields = kept
	return r, nil
}
