package mitm

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// What an exchange of HTTP/1 does beside its usual way: bodies that stream to the
// upstream, upgrades, failures.

// sending is a request's body on its way to the upstream, while the response is read.
type sending struct {
	done chan struct{} // closed at its end; then there are
	sent int64
	from error // what is wrong with the client
	into error // or with the upstream
}

func (c *client) startSending(up *upstreamConn) *sending {
	s := &sending{done: make(chan struct{})}
	_ = c.conn.SetReadDeadline(time.Time{}) // it may take its time; a failure is that of the next read
	c.source.to = c.up
	go func() {
		defer close(s.done)
		s.sent, s.from, s.into = c.content.relay(c.up, c.request.chunked)
		if s.from == nil && s.into == nil {
			s.into = c.up.Flush()
		}
		if s.from != nil {
			_ = up.under.Close() // the upstream must see that it was not all
		}
	}()
	return s
}

func (s *sending) underway() bool {
	if s == nil {
		return false
	}
	select {
	case <-s.done:
		return false
	default:
		return true
	}
}

// finish waits for its end, and reports whether it was a good one.
func (s *sending) finish() bool {
	<-s.done
	return s.from == nil && s.into == nil
}

// stop ends an exchange before its end.
func (c *client) stop(up *upstreamConn) {
	_ = up.under.Close()
	if c.sending != nil {
		_ = c.conn.SetReadDeadline(past)
		<-c.sending.done
	}
	c.release(up, false)
}

// cut gives up an exchange whose response has begun, and cannot be brought to its end.
func (c *client) cut(up *upstreamConn, err error) ending {
	c.stop(up)
	c.exchange.err = c.why(err)
	if m, ok := errors.AsType[*malformed](c.exchange.err); ok {
		_, _ = c.flow.malformed(m) // an error is the journal's own, which ends the run
	}
	return broken
}

// fail answers a request whose response has not begun.
func (c *client) fail(up *upstreamConn, err error) ending {
	if up != nil {
		c.stop(up)
	}
	x := &c.exchange
	err = c.why(err)
	if m, ok := errors.AsType[*malformed](err); ok {
		x.status, x.err = m.status, err
		return c.answer(c.flow.malformed(m))
	}
	if errors.Is(err, errClientGone) {
		x.err = err
		return broken
	}
	return c.answer(x.failed(err))
}

// why is what an error comes from, which may be the client.
func (c *client) why(err error) error {
	if s := c.sending; s != nil && s.from != nil && !errors.Is(s.from, os.ErrDeadlineExceeded) {
		if m, ok := errors.AsType[*malformed](s.from); ok {
			return fmt.Errorf("%w: %w", errRefused, m)
		}
		return errClientGone
	}
	if c.flow.isGone() {
		return errClientGone
	}
	return err
}

// answer sends an answer of ours, unless what is to be recorded of it could not be.
func (c *client) answer(p problem, unrecorded error) ending {
	kind, text, err := c.exchange.document(p)
	if unrecorded != nil || err != nil {
		return broken
	}
	w := c.toClient()
	fmt.Fprintf(w, "HTTP/1.1 %d %s\r\n", p.Status, http.StatusText(p.Status))
	writeField(w, "Date", time.Now().UTC().Format(http.TimeFormat))
	writeField(w, "Content-Type", kind)
	writeField(w, "Content-Length", strconv.Itoa(len(text)))
	end := goesOn
	switch {
	case c.content.part != ended:
		end = lingers
	case !c.request.persists():
		end = done
	}
	if end != goesOn {
		writeField(w, "Connection", "close")
	} else if c.request.minor == 0 {
		writeField(w, "Connection", "keep-alive")
	}
	endHead(w)
	if c.request.method != http.MethodHead {
		_, _ = w.Write(text)
	}
	if w.Flush() != nil {
		return done // it has its answer in the journal
	}
	return end
}

// switchProtocols makes of the two connections one of another protocol, if it is the
// one that was asked for.
func (c *client) switchProtocols(up *upstreamConn) ending {
	x, wanted, got := &c.exchange, c.request.upgradeTo(), c.response.upgrade
	if wanted == "" || !strings.EqualFold(wanted, got) {
		return c.fail(up, fmt.Errorf("the upstream switches to protocol %q, asked for %q", got, wanted))
	}
	if c.sending != nil && !c.sending.finish() {
		return c.cut(up, c.sending.into)
	}
	x.status = http.StatusSwitchingProtocols
	c.response.writeResponse(c.out, false)
	writeField(c.out, "Connection", "Upgrade")
	writeField(c.out, "Upgrade", got)
	endHead(c.out)
	if c.out.Flush() != nil || c.conn.SetReadDeadline(time.Time{}) != nil {
		return c.cut(up, errClientGone)
	}
	b := &c.flow.proxy.buffers
	c.source.to, c.out, c.up = nil, b.putWriter(c.out), b.putWriter(c.up)
	err := copyBoth(&switched{c.conn, c.in, &x.sent}, &switched{up, up.reader, &x.received})
	if err != nil && !isClosed(err) {
		x.err = c.why(err)
	}
	c.release(up, false)
	return done
}

// switched is one side of an upgraded connection.
type switched struct {
	closeWriter
	reader *bufio.Reader
	count  *int64 // of what is read
}

func (s *switched) Read(p []byte) (int, error) {
	n, err := s.reader.Read(p)
	*s.count += int64(n)
	return n, err
}

// setOutgoing notes the connection that the flow's request is on, which goes with the
// client; nil: none.
func (f *flow) setOutgoing(up *upstreamConn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.outgoing = up
	if up != nil && f.gone {
		_ = up.under.Close()
	}
}

// breakOff ends the flow's request, whose client is gone.
func (f *flow) breakOff() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone = true
	if f.outgoing != nil {
		_ = f.outgoing.under.Close()
	}
}

func (f *flow) isGone() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gone
}
