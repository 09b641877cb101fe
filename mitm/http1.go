package mitm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// limits are those that no run sets.
type limits struct {
	// wake is how long a client that has had its answer is likely to ask again; then
	// it waits without buffers.
	wake time.Duration
	// linger and drained bound what is still read of a client that is told something
	// and may not be listening yet.
	linger  time.Duration
	drained int64 // bytes
	// fast is the time in which so much of an opaque flow comes that it is gathered, and
	// patience how long that may hold up a part of it.
	fast, patience time.Duration
}

var defaultLimits = limits{
	wake: 2 * time.Second, linger: time.Second, drained: 256 << 10,
	fast: 10 * time.Millisecond, patience: 2 * time.Millisecond,
}

// preface begins HTTP/2 without TLS (RFC 9113, section 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// client is a client's connection that speaks HTTP/1. One goroutine serves it, request
// by request; a second one is there while a body is on its way to the upstream.
type client struct {
	flow   *flow
	conn   closeWriter
	source source
	in     *bufio.Reader // nil while it is idle
	out    *bufio.Writer // nil but for a response
	up     *bufio.Writer // to the upstream; nil but for a request
	served bool          // a request at least

	text     []byte // of a head that is being read
	request  head
	content  body // of the request
	response head
	exchange exchange
	sending  *sending // the request's body; nil: it is with the upstream
}

// ending is how it goes on with a client's connection after an exchange.
type ending uint8

const (
	goesOn ending = iota
	done
	lingers    // it is told something, and may be sending still
	broken     // the response is not whole, which the client must see
	handedOver // to who speaks HTTP/2
)

// serveHTTP1 serves the connection of a client that speaks HTTP without having said
// which, or HTTP/1. ahead has what was read of it already, if anything.
func (f *flow) serveHTTP1(ctx context.Context, conn closeWriter, ahead *bufio.Reader) {
	c := &client{flow: f, conn: conn, source: source{conn: conn}}
	if ahead != nil {
		c.source.before, _ = ahead.Peek(ahead.Buffered())
	}
	c.in = f.proxy.buffers.reader(&c.source)
	end := goesOn
	for end == goesOn {
		end = c.serve(ctx)
		c.out = f.proxy.buffers.putWriter(c.out)
	}
	switch end {
	case handedOver:
		f.serveHTTP2(ctx, conn, c.in)
		return
	case lingers:
		c.linger()
	case broken:
		if c.request.minor == 0 && c.response.length == noLength {
			f.reset() // an end would pass for the response's
		}
		_ = f.conn.Close() // before TLS says that this was the end
	}
	_ = conn.Close()
	f.proxy.buffers.putReader(c.in)
}

// serve serves one request.
func (c *client) serve(ctx context.Context) ending {
	if err := c.await(); err != nil {
		return done
	}
	var err error
	if !c.served {
		var found bool
		if found, err = c.beginsHTTP2(); found {
			return handedOver
		}
		c.served = true
	}
	if err == nil {
		c.text, err = readHead(c.in, c.text[:0], c.flow.proxy.config.Limits.HeaderBytes)
	}
	if err == nil {
		err = c.request.parseRequest(string(c.text))
	}
	x := &c.exchange
	c.sending = nil
	*x = exchange{flow: c.flow, request: &c.request, protocol: "HTTP/1.1", began: time.Now()}
	if m, ok := errors.AsType[*malformed](err); ok {
		c.request, c.content, x.host = head{}, body{part: toTheEnd}, c.flow.host()
		return c.answer(c.flow.malformed(m))
	}
	if err != nil {
		return done
	}
	if c.request.minor == 0 {
		x.protocol = "HTTP/1.0"
	}
	c.content = bodyOf(&c.request, c.in)
	if refused := x.identify(); refused != nil {
		return c.answer(x.refused(refused))
	}
	if c.flow.opened("http") != nil {
		return broken
	}
	end := c.forward(ctx)
	if x.record() != nil {
		return broken
	}
	return end
}

// await returns when there is the beginning of a request. Who lets it wait for long
// has no buffers meanwhile.
func (c *client) await() error {
	limits, wake := &c.flow.proxy.config.Limits, c.flow.proxy.limits.wake
	patience := limits.IdleTimeout
	if !c.served {
		patience = limits.HeaderTimeout
	}
	if c.in.Buffered() == 0 && len(c.source.before) == 0 {
		if err := c.conn.SetReadDeadline(time.Now().Add(min(patience, wake))); err != nil {
			return err
		}
	}
	_, err := c.in.Peek(1)
	if errors.Is(err, os.ErrDeadlineExceeded) && patience > wake {
		err = c.sleep(patience - wake)
	}
	if err != nil {
		return err
	}
	if begin, _ := c.in.Peek(c.in.Buffered()); !bytes.Contains(begin, []byte("\r\n\r\n")) {
		return c.conn.SetReadDeadline(time.Now().Add(limits.HeaderTimeout))
	}
	return nil
}

// sleep waits without buffers.
func (c *client) sleep(most time.Duration) error {
	f := c.flow
	f.proxy.buffers.putReader(c.in)
	*c = client{flow: f, conn: c.conn, source: source{conn: c.conn}, served: c.served} // nothing is left of the last exchange
	defer func() { c.in = f.proxy.buffers.reader(&c.source) }()
	if err := c.conn.SetReadDeadline(time.Now().Add(most)); err != nil {
		return err
	}
	var first [1]byte
	n, err := c.conn.Read(first[:])
	if n == 0 {
		return err
	}
	c.source.before = first[:]
	return nil
}

// beginsHTTP2 looks for the preface, and no further than it must: a client may wait
// for the answer to less.
func (c *client) beginsHTTP2() (bool, error) {
	const unmistakable = len("PRI ")
	for n := 1; n <= len(preface); n++ {
		begin, err := c.in.Peek(n)
		switch {
		case err != nil:
			return false, err
		case begin[n-1] == preface[n-1]:
		case n > unmistakable:
			return false, malform("the method PRI is for the preface of HTTP/2")
		default:
			return false, nil
		}
	}
	return true, c.conn.SetReadDeadline(time.Time{})
}

// forward sends the request on and brings the response.
func (c *client) forward(ctx context.Context) ending {
	f, x, r, res := c.flow, &c.exchange, &c.request, &c.response
	if f.unreachable != nil {
		return c.fail(nil, f.unreachable)
	}
	repeatable := r.idempotent() && c.content.part == ended
	up, err := f.proxy.upstreams.connect(ctx, f, x.endpoint())
	if err != nil {
		return c.fail(nil, err)
	}
	for {
		c.send(up)
		// Whether all went out does not matter: it may answer what it does not read to
		// its end.
		if _, err = up.reader.Peek(1); err == nil || !up.kept || !repeatable || f.isGone() {
			break
		}
		// It has ended a connection that it had kept, as the request came.
		c.release(up, false)
		if up, err = f.proxy.upstreams.dial(ctx, f, x.endpoint()); err != nil {
			return c.fail(nil, err)
		}
	}
	if err != nil {
		return c.fail(up, fmt.Errorf("the upstream has not answered: %w", err))
	}
	out, continued := c.toClient(), false
	for {
		if err := c.readResponse(up.reader); err != nil {
			return c.fail(up, err)
		}
		if res.status >= 200 {
			break
		}
		if res.status == http.StatusSwitchingProtocols {
			return c.switchProtocols(up)
		}
		continued = continued || res.status == http.StatusContinue
		if r.minor == 1 {
			res.writeResponse(out, false)
			endHead(out)
			if out.Flush() != nil {
				return c.fail(up, errClientGone)
			}
		}
	}
	x.status = res.status
	if r.method == http.MethodHead || res.status == http.StatusNoContent || res.status == http.StatusNotModified {
		res.bodiless = true
	}
	answer := bodyOf(res, up.reader)
	unsized := !res.bodiless && res.length == noLength
	chunked := unsized && r.minor == 1
	// What is left of a request that its upstream has had enough of is not wanted.
	unwanted := c.sending.underway() && (!res.persists() || r.expects && !continued)
	last := unwanted || !r.persists() || unsized && !chunked
	res.writeResponse(out, chunked)
	switch {
	case last:
		writeField(out, "Connection", "close")
	case r.minor == 0:
		writeField(out, "Connection", "keep-alive")
	}
	endHead(out)
	up.source.to = out // a piece that is not followed by another goes out
	n, from, into := answer.relay(out, chunked)
	x.received = n
	if from == nil && into == nil {
		into = out.Flush()
	}
	switch {
	case into != nil:
		return c.cut(up, errClientGone)
	case from != nil:
		return c.cut(up, from)
	case unwanted:
		c.stop(up)
		return lingers
	}
	if c.sending != nil && !c.sending.finish() {
		c.cut(up, c.sending.into)
		return lingers // the response at least is whole
	}
	c.release(up, res.persists() && up.reader.Buffered() == 0)
	if last {
		return done
	}
	return goesOn
}

// send sends the request, but for a body that has not come yet: that goes on by a
// goroutine of its own. Of a failure is heard when the response is read.
func (c *client) send(up *upstreamConn) {
	x := &c.exchange
	x.upstream = up.address
	c.flow.setOutgoing(up)
	up.reader = c.flow.proxy.buffers.reader(&up.source)
	c.up = c.flow.proxy.buffers.writer(up.Conn)
	x.writeRequest(c.up)
	if c.content.part == ended || c.content.part == inLength && c.content.left <= int64(c.in.Buffered()) {
		x.sent, _, _ = c.content.relay(c.up, false)
		_ = c.up.Flush()
		c.up = c.flow.proxy.buffers.putWriter(c.up)
		return
	}
	c.sending = c.startSending(up)
}

// readResponse reads the head of a response, which must be as well-formed as a
// request: what is read here in one way may be read by a client in another.
func (c *client) readResponse(reader *bufio.Reader) error {
	first, err := reader.Peek(1)
	if err == nil && first[0] != 'H' {
		err = malform("it does not begin with a version of HTTP")
	}
	if err == nil {
		c.text, err = readHead(reader, c.text[:0], maxResponse)
	}
	if err == nil {
		err = c.response.parseResponse(string(c.text))
	}
	if m, ok := errors.AsType[*malformed](err); ok {
		return fmt.Errorf("the upstream's response is not well-formed: %s", m.detail)
	}
	return err
}

// release lets go of an upstream, for good unless it is to be used again.
func (c *client) release(up *upstreamConn, again bool) {
	c.flow.setOutgoing(nil)
	if c.sending != nil {
		c.exchange.sent, c.source.to = c.exchange.sent+c.sending.sent, nil
	}
	c.up = c.flow.proxy.buffers.putWriter(c.up)
	c.flow.proxy.buffers.putReader(up.reader)
	up.reader, up.source.to = nil, nil
	if again {
		c.flow.proxy.upstreams.idle.put(up)
		return
	}
	_ = up.Close()
}

// writeRequest writes the head of the request as it came, but for what is of one
// connection only.
func (x *exchange) writeRequest(w *bufio.Writer) {
	h, grants := x.request, x.putGrants()
	authority := h.authority
	if authority == "" {
		authority = x.address()
	}
	_, _ = w.WriteString(h.method)
	_ = w.WriteByte(' ')
	_, _ = w.WriteString(h.target)
	_, _ = w.WriteString(" HTTP/1.1\r\n")
	named := false
fields:
	for i := range h.fields {
		f := &h.fields[i]
		switch f.kind {
		case hostField:
			writeField(w, f.name, authority)
			named = true
			continue
		case lengthField, codingField:
			h.writeFraming(w, f)
			continue
		case connectionField, hopField, upgradeField:
			continue
		case teField:
			if strings.Contains(strings.ToLower(f.value), "trailers") {
				writeField(w, f.name, "trailers")
			}
			continue
		case expectField:
			if !h.expects {
				continue
			}
		case trailerField:
			if !h.chunked {
				continue
			}
		}
		if h.isOption(f.name) {
			continue
		}
		for g := range grants {
			if grants[g].covers(f.name) {
				continue fields
			}
		}
		writeField(w, f.name, f.value)
	}
	if !named {
		writeField(w, "Host", authority)
	}
	for _, g := range grants {
		writeField(w, g.Header, g.Value())
	}
	if protocol := h.upgradeTo(); protocol != "" {
		writeField(w, "Connection", "Upgrade")
		writeField(w, "Upgrade", protocol)
	}
	endHead(w)
}

// writeResponse writes the head of a response, but for its end, in the same way.
func (h *head) writeResponse(w *bufio.Writer, chunked bool) {
	_, _ = w.WriteString("HTTP/1.1 ")
	_, _ = w.Write(strconv.AppendInt(w.AvailableBuffer(), int64(h.status), 10))
	_ = w.WriteByte(' ')
	_, _ = w.WriteString(h.reason)
	_, _ = w.WriteString("\r\n")
	for i := range h.fields {
		f := &h.fields[i]
		switch f.kind {
		case lengthField:
			if h.status >= 200 && h.status != http.StatusNoContent {
				h.writeFraming(w, f)
			}
			continue
		case codingField, connectionField, hopField, upgradeField:
			continue
		case trailerField:
			if !chunked {
				continue
			}
		}
		if !h.isOption(f.name) {
			writeField(w, f.name, f.value)
		}
	}
	if chunked {
		writeField(w, "Transfer-Encoding", "chunked")
	}
}

// toClient is what the response is written through.
func (c *client) toClient() *bufio.Writer {
	if c.out == nil {
		c.out = c.flow.proxy.buffers.writer(c.conn)
	}
	return c.out
}

// linger ends our side of the connection, and waits for the client to have read it: one
// that is closed with something unread is reset, and the client may lose the answer.
func (c *client) linger() {
	limits := &c.flow.proxy.limits
	if c.conn.CloseWrite() == nil && c.conn.SetReadDeadline(time.Now().Add(limits.linger)) == nil {
		_, _ = io.CopyN(io.Discard, c.in, limits.drained)
	}
}
