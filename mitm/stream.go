package mitm

import (
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

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
		return from.end.broken(h.id, h, &connectionError{codeProtocol, "a body that is not as long as its Content-Length"})
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
	from.credit(h, int64(len(p))) // of a request that has had an answer of ours
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
	before := s.state.Or(responseSent) // and then look: see complete
	s.mu.Lock()
	local := s.local
	s.mu.Unlock()
	if before&requestSent != 0 || local {
		s.close()
	}
}

// close ends a stream whose response has gone out; of the request nothing more is wanted.
func (s *stream) close() {
	client := s.toClient.link
	client.mu.Lock()
	received := s.toClient.received
	client.mu.Unlock()
	if !received {
		client.reset(s.toClient.id, codeNone)
	}
	s.finish(nil)
}

// complete reports whether the upstream has answered in full. Its end is none of the
// stream's then: the client gets what it has not got yet.
func (s *stream) complete() bool {
	client := s.toClient.link
	client.mu.Lock()
	whole := s.toClient.ending || s.toClient.ended
	client.mu.Unlock()
	if whole {
		s.mu.Lock()
		s.local = true
		s.mu.Unlock()
		if s.state.Load()&responseSent != 0 {
			s.close()
		}
	}
	return whole
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

// fail ends a stream whose upstream has failed, unless the response is all here: by an
// answer, if it has not begun to.
// retry: the upstream has not seen it.
func (s *stream) fail(err error, code errorCode, retry bool) {
	s.mu.Lock()
	answered := s.answered
	if retry = retry && s.whole && !answered && !s.retried; retry {
		s.retried = true
	}
	s.mu.Unlock()
	switch {
	case s.over.Load(), s.complete():
	case retry:
		// Who fails it is one that is waited for, as well.
		s.flow.proxy.upstreams.serving.Go(func() { s.flow.http2().connect(s, true) })
	case answered || code == codeHTTP1 || code == codeRefused:
		s.toClient.link.reset(s.toClient.id, code)
		s.finish(err)
	default:
		s.answer(s.failing(err))
	}
}

// failing is the answer to a stream that has failed, if nobody has ended it meanwhile:
// its record is being written then.
func (s *stream) failing(err error) (problem, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over.Load() {
		return problem{}, err
	}
	return s.failed(err)
}

// answer sends an answer of ours, unless what is to be recorded of it could not be.
func (s *stream) answer(p problem, unrecorded error) {
	kind, text, err := s.document(p)
	if s.over.Load() {
		return
	}
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
