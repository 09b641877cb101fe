package mitm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"agentops/mitm/policy"

	"golang.org/x/net/http2/hpack"
)

// h2Client is a client's connection of HTTP/2. Who reads it judges every request and
// sends it on; who reads the upstream's sends the response back.
type h2Client struct {
	ctx  context.Context
	flow *flow
	link *link

	extended bool        // it was told that it may use extended CONNECT (RFC 8441)
	referred atomic.Bool // a request was, to another connection
}

// serveHTTP2 serves the connection of a client that speaks HTTP/2. ahead has what was
// read of it already, if anything.
func (f *flow) serveHTTP2(ctx context.Context, conn closeWriter, ahead *bufio.Reader) {
	c := &h2Client{ctx: ctx, flow: f}
	c.link = newLink(f.proxy, conn, f.conn.socket, f.proxy.config.Limits.HeaderBytes, linkWindow)
	c.link.end = c
	if ahead != nil {
		read, _ := ahead.Peek(ahead.Buffered())
		c.link.ahead = bytes.Clone(read)
		f.proxy.buffers.putReader(ahead)
	}
	f.mu.Lock()
	f.client = c
	f.mu.Unlock()
	err := c.serve(conn) // there is always one
	for _, h := range c.link.all() {
		h.stream.cancel(errClientGone)
	}
	if !isClosed(err) && !errors.Is(err, os.ErrDeadlineExceeded) {
		f.fail(err)
	}
	_ = conn.Close()
	c.link.stopReading()
}

func (c *h2Client) serve(conn closeWriter) error {
	l, limits := c.link, &c.flow.proxy.config.Limits
	settings := []uint32{settingStreams, maxStreams, settingWindow, streamWindow, settingHeaderList, uint32(2 * limits.HeaderBytes)} // the limit is ours to refuse, with words
	if c.extended = c.flow.proxy.upstreams.extended(c.ctx, c.flow); c.extended {
		settings = append(settings, settingConnect, 1)
	}
	l.out = appendSettings(l.out, settings...)
	l.out = appendWindow(l.out, 0, linkWindow-defaultWindow)
	l.flush()
	err := conn.SetReadDeadline(time.Now().Add(limits.HeaderTimeout))
	if err == nil {
		err = c.begin()
	}
	if err == nil {
		err = l.until(time.Time{})
	}
	if err == nil {
		err = l.why(l.serve())
	}
	l.flushTouched() // for others, who wait for it
	e, ok := errors.AsType[*connectionError](err)
	if ok {
		// An error is the journal's own, which ends the run.
		_, _ = c.flow.malformed(malform(e.Error()))
		l.sayGoAway(e.code)
	}
	if ok || errors.Is(err, os.ErrDeadlineExceeded) { // it is to read why
		if conn.CloseWrite() == nil && conn.SetReadDeadline(time.Now().Add(c.flow.proxy.limits.linger)) == nil {
			_, _ = io.CopyN(io.Discard, conn, c.flow.proxy.limits.drained)
		}
	}
	return err
}

// begin reads the preface and the first settings (RFC 9113, section 3.4).
func (c *h2Client) begin() error {
	l := c.link
	l.startReading()
	p, err := l.in.Peek(len(preface))
	if err != nil {
		return err
	}
	if !bytes.Equal(p, []byte(preface)) {
		return &connectionError{codeProtocol, "the preface of HTTP/2 is missing"}
	}
	_, _ = l.in.Discard(len(preface))
	return l.firstSettings()
}

// headers implements end.
func (c *h2Client) headers(id uint32, h *half, endStream, tooLong bool) error {
	l := c.link
	if h != nil {
		err := checkTrailer(l.fields)
		if err == nil && (!endStream || tooLong) {
			err = malform("a trailer that is not the end, or too long")
		}
		if err != nil {
			return c.broken(id, h, &connectionError{codeProtocol, err.Error()})
		}
		return h.stream.trail(l, h, l.fields)
	}
	if id%2 == 0 {
		return &connectionError{codeProtocol, fmt.Sprintf("the client begins stream %d", id)}
	}
	f := c.flow
	s := &stream{whole: endStream, length: noLength, resLength: noLength}
	s.toClient = half{stream: s, link: l, id: id, inflow: streamWindow, ahead: streamWindow, received: endStream}
	l.mu.Lock()
	begun, left, many := id <= l.last, l.leaving, len(l.halves) >= maxStreams
	if !begun {
		l.last = id
	}
	if !begun && !left && !many {
		s.toClient.window = l.initial
		l.halves[id] = &s.toClient
		f.proxy.open.Add(1) // its record may come after its flow's
	}
	l.mu.Unlock()
	switch {
	case begun:
		return &connectionError{codeStreamClosed, fmt.Sprintf("a head on stream %d, which is over", id)}
	case left:
		return nil // it has been told so
	case many:
		l.reset(id, codeRefused)
		return nil
	}
	s.exchange = exchange{flow: f, request: &s.head, protocol: "HTTP/2.0", began: time.Now()}
	s.host = f.host()
	wrong := s.head.parseHeaders(l.fields, c.extended)
	if s.length = s.head.length; wrong == nil && endStream && s.length > 0 {
		wrong = malform("a body that is not as long as its Content-Length")
	}
	switch {
	case tooLong:
		s.url = s.makeURL()
		return c.answer(s, &refusal{reason: policy.Malformed, status: http.StatusRequestHeaderFieldsTooLarge, detail: fmt.Sprintf("a head of more than %d bytes", l.most)})
	case wrong != nil:
		s.head = head{}
		return c.broken(id, &s.toClient, &connectionError{codeProtocol, wrong.Error()})
	}
	if refused := s.identify(); refused != nil {
		return c.answer(s, refused)
	}
	if f.opened("http") != nil {
		return net.ErrClosed
	}
	c.connect(s, false)
	return nil
}

// answer tells the client what is refused.
func (c *h2Client) answer(s *stream, r *refusal) error {
	s.answer(s.refused(r))
	return nil
}

// connect sends a request to its upstream; again: not by who reads the client.
func (c *h2Client) connect(s *stream, again bool) {
	if err := c.flow.unreachable; err != nil {
		s.answer(s.failing(err))
		return
	}
	waits := c.link
	if again {
		waits = nil
	}
	for tries := 0; ; {
		up, fresh, err := c.flow.proxy.upstreams.take(c.ctx, c.flow, s.endpoint(), waits)
		switch {
		case errors.Is(err, errOnlyHTTP1):
			c.refer(s, err)
			return
		case err != nil:
			s.answer(s.failing(err))
			return
		}
		if s.head.protocol != "" {
			if waits != nil {
				waits.flushTouched()
			}
			if !up.extended(c.ctx, c.flow) {
				s.answer(s.failing(errNotExtended))
				return
			}
		}
		s.mu.Lock()
		if s.over.Load() { // its client has gone meanwhile, and its record is being written
			s.mu.Unlock()
			return
		}
		fields := s.outgoingHead()
		s.mu.Unlock()
		if first, ok := up.open(s, fields); ok {
			if s.over.Load() { // its client has gone meanwhile
				h := s.outgoing()
				h.link.reset(h.id, codeCancel)
				h.link.forget(h)
			}
			if again {
				up.link.flush()
			} else {
				c.link.touch(up.link, first)
			}
			return
		}
		if fresh {
			if tries++; tries == mostTries {
				s.answer(s.failing(errNoRoom))
				return
			}
		}
	}
}

// refer has the client ask again on another connection, which will be of HTTP/1.1. Some
// do when a stream is refused, and take GOAWAY for the end; others ask again on this
// connection, until that comes.
func (c *h2Client) refer(s *stream, err error) {
	c.link.reset(s.toClient.id, codeRefused)
	if c.referred.Swap(true) {
		c.link.sayGoAway(codeNone)
	}
	s.finish(err)
}

// outgoingHead is the head as it came, but for what is of one connection only, and the
// host, which is said once.
func (s *stream) outgoingHead() []hpack.HeaderField {
	h, grants := s.request, s.putGrants()
	authority, scheme := h.authority, "http"
	if authority == "" {
		authority = s.address()
	}
	if s.flow.tls {
		scheme = "https"
	}
	fields := make([]hpack.HeaderField, 0, len(h.fields)+5+len(grants))
	fields = append(fields, hpack.HeaderField{Name: ":method", Value: h.method}, hpack.HeaderField{Name: ":scheme", Value: scheme},
		hpack.HeaderField{Name: ":authority", Value: authority}, hpack.HeaderField{Name: ":path", Value: h.target})
	if h.protocol != "" {
		fields = append(fields, hpack.HeaderField{Name: ":protocol", Value: h.protocol})
	}
fields:
	for i := range h.fields {
		f := &h.fields[i]
		if f.kind == hostField || f.kind == hopField {
			continue
		}
		for g := range grants {
			if grants[g].covers(f.name) {
				continue fields
			}
		}
		fields = append(fields, hpack.HeaderField{Name: f.name, Value: f.value})
	}
	for _, g := range grants {
		fields = append(fields, hpack.HeaderField{Name: strings.ToLower(g.Header), Value: g.Value(), Sensitive: true})
	}
	return fields
}

// reset implements end.
func (c *h2Client) reset(h *half, _ errorCode) { h.stream.cancel(errClientGone) }

// goAway implements end: the client begins no stream any more, which it does not have to say.
func (c *h2Client) goAway(uint32, errorCode) {}

// broken implements end: what is malformed goes nowhere, or no further, and is recorded.
func (c *h2Client) broken(id uint32, h *half, e *connectionError) error {
	m := malform(e.Error())
	_, err := c.flow.malformed(m)
	c.link.reset(id, e.code)
	if h != nil {
		s := h.stream
		s.mu.Lock()
		if s.status == 0 {
			s.status = m.status
		}
		s.mu.Unlock()
		s.cancel(fmt.Errorf("%w: %w", errRefused, m))
	}
	return err
}

// sleepy ends a connection that was idle for too long.
func (c *h2Client) sleepy(now time.Time, most time.Duration) {
	if c.link.sleepy(now, most) {
		c.link.sayGoAway(codeNone)
		_ = c.link.conn.SetReadDeadline(past)
	}
}

func (f *flow) http2() *h2Client {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.client
}
