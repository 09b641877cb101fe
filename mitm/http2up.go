package mitm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/net/http2/hpack"
)

// errOnlyHTTP1 is the end of a request of HTTP/2 whose upstream has begun to speak
// HTTP/1.1 alone. The client may come again by that.
var errOnlyHTTP1 = errors.New("the upstream does not speak HTTP/2 any more")

// errNotExtended is that of one which did take extended CONNECT, and does not any more.
var errNotExtended = errors.New("the upstream takes no CONNECT with :protocol on this connection")

// errNoRoom is the end of a request whose upstream takes none now.
var errNoRoom = errors.New("the upstream takes no requests now")

// h2Upstream is a connection of HTTP/2 to an upstream. All clients of the run share it.
type h2Upstream struct {
	upstreams *upstreams
	link      *link
	to        endpoint
	address   string        // ADDRESS:PORT
	settled   chan struct{} // is closed when it has sent its settings, or has ended
	served    bool          // a request was answered on it; guarded by link.mu
}

func newH2Upstream(u *upstreams, to endpoint, conn net.Conn, under *socket) *h2Upstream {
	l := newLink(u.proxy, conn, under, maxResponse, sharedWindow)
	up := &h2Upstream{upstreams: u, link: l, to: to, address: conn.RemoteAddr().String(), settled: make(chan struct{})}
	l.end, l.shared, l.allowed = up, true, firstStreams
	l.out = append(l.out, preface...)
	l.out = appendSettings(l.out, settingPush, 0, settingWindow, streamWindow, settingHeaderList, maxResponse)
	l.out = appendWindow(l.out, 0, sharedWindow-defaultWindow)
	return up
}

// share takes a connection into the books, for who has the lock; false: none is any more.
func (u *upstreams) share(up *h2Upstream) bool {
	if u.shared == nil {
		_ = up.link.conn.Close()
		return false
	}
	u.shared[up.to] = append(u.shared[up.to], up)
	u.serving.Go(up.serve)
	return true
}

// extended reports whether the flow's upstream takes extended CONNECT (RFC 8441), as far
// as there is a connection to it.
func (u *upstreams) extended(ctx context.Context, f *flow) bool {
	u.mu.Lock()
	ups := u.shared[f.endpoint()]
	u.mu.Unlock()
	return len(ups) > 0 && ups[0].extended(ctx, f)
}

// extended waits for the upstream's settings, which are the first that it sends.
func (up *h2Upstream) extended(ctx context.Context, f *flow) bool {
	timer := time.NewTimer(f.handshakeTimeout())
	defer timer.Stop()
	select {
	case <-up.settled:
	case <-timer.C:
	case <-ctx.Done():
	}
	up.link.mu.Lock()
	defer up.link.mu.Unlock()
	return up.link.extended
}

// dialing is a connection that is being made. Who waits for it has its error, too.
type dialing struct {
	done chan struct{}
	err  error
}

// take returns a connection that has room for a stream, and whether it is new. waits is
// the link whose reader does, if one does; what that has to write goes out before.
func (u *upstreams) take(ctx context.Context, f *flow, to endpoint, waits *link) (up *h2Upstream, fresh bool, err error) {
	allowed := firstStreams // on a connection, says the upstream
	for {
		u.mu.Lock()
		for _, up := range u.shared[to] {
			room, most := up.hasRoom()
			if room {
				u.mu.Unlock()
				return up, false, nil
			}
			allowed = most
		}
		d := u.dialing[to]
		if d == nil {
			break
		}
		u.mu.Unlock()
		if waits != nil {
			waits.flushTouched()
		}
		select {
		case <-d.done:
			if d.err != nil {
				return nil, false, d.err
			}
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
	if allowed == 0 {
		u.mu.Unlock()
		return nil, false, errNoRoom // another would take none, either
	}
	d := &dialing{done: make(chan struct{})}
	u.dialing[to] = d
	u.mu.Unlock()
	if waits != nil {
		waits.flushTouched()
	}
	up, d.err = u.dialHTTP2(ctx, f, to)
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.dialing, to)
	close(d.done)
	if d.err != nil {
		return nil, false, d.err
	}
	up.link.allowed = allowed
	if !u.share(up) {
		return nil, false, net.ErrClosed
	}
	return up, true, nil
}

func (u *upstreams) dialHTTP2(ctx context.Context, f *flow, to endpoint) (*h2Upstream, error) {
	if !to.tls {
		under, err := u.dialSocket(ctx, to)
		if err != nil {
			return nil, err
		}
		return newH2Upstream(u, to, under, under), nil
	}
	conn, err := u.dialTLS(ctx, f, to.host, []string{alpnHTTP2, alpnHTTP1})
	if err != nil {
		return nil, err
	}
	if conn.ConnectionState().NegotiatedProtocol != alpnHTTP2 {
		_ = conn.Close()
		u.mu.Lock()
		defer u.mu.Unlock()
		remember(u.spoke, joinAddress(to.host, to.port), []string{alpnHTTP1})
		return nil, errOnlyHTTP1
	}
	return newH2Upstream(u, to, conn, conn.NetConn().(*socket)), nil
}

// hasRoom also returns how many streams the upstream lets us have.
func (up *h2Upstream) hasRoom() (room bool, allowed int) {
	up.link.mu.Lock()
	defer up.link.mu.Unlock()
	return up.link.hasRoom(), up.link.allowed
}

// open begins a stream; false: there is no room any more.
func (up *h2Upstream) open(s *stream, fields []hpack.HeaderField) (first, ok bool) {
	l := up.link
	l.mu.Lock()
	if !l.hasRoom() {
		l.mu.Unlock()
		return false, false
	}
	first = len(l.out) == 0
	l.last = (l.last + 1) | 1 // ours are odd
	h := &half{stream: s, link: l, id: l.last, window: l.initial, inflow: streamWindow, ahead: streamWindow}
	l.halves[h.id] = h
	s.mu.Lock()
	s.toUp, s.upstream = h, up.address
	s.mu.Unlock()
	l.append(h, fields, s.whole)
	l.unlock()
	return first, true
}

// serve reads the connection to its end.
func (up *h2Upstream) serve() {
	l := up.link
	l.flush()
	err := l.firstSettings()
	if err == nil {
		err = l.next()
	}
	close(up.settled)
	if err == nil {
		err = l.serve()
	}
	err = l.why(err)
	if e, ok := errors.AsType[*connectionError](err); ok {
		l.sayGoAway(e.code)
	}
	l.mu.Lock()
	served := up.served
	l.mu.Unlock()
	halves := l.all()
	_ = l.conn.Close()
	up.upstreams.drop(up)
	for _, h := range halves {
		l.forget(h)
		h.stream.fail(fmt.Errorf("the upstream has not answered: %w", unexpected(err)), codeInternal, served && h.stream.request.idempotent())
	}
	l.flushTouched()
	l.stopReading()
}

// drop takes a connection out of the books.
func (u *upstreams) drop(up *h2Upstream) {
	u.mu.Lock()
	defer u.mu.Unlock()
	kept := u.shared[up.to][:0:0]
	for _, other := range u.shared[up.to] {
		if other != up {
			kept = append(kept, other)
		}
	}
	if len(kept) == 0 {
		delete(u.shared, up.to)
	} else {
		u.shared[up.to] = kept
	}
}

// headers implements end.
func (up *h2Upstream) headers(id uint32, h *half, endStream, tooLong bool) error {
	l := up.link
	if h == nil { // it was reset, unless it has not begun
		_, err := l.half(frame{kind: frameHeaders, stream: id})
		return err
	}
	s := h.stream
	s.mu.Lock()
	answered := s.answered
	s.mu.Unlock()
	var err error
	switch {
	case tooLong:
		err = malform(fmt.Sprintf("a head of more than %d bytes", l.most))
	case !answered:
		l.mu.Lock()
		up.served = true
		l.mu.Unlock()
		err = s.respond(l, l.fields, endStream)
	case !endStream:
		err = malform("a trailer that is not the end")
	default:
		if err = checkTrailer(l.fields); err == nil {
			return s.trail(l, h, l.fields)
		}
	}
	if err != nil {
		return up.broken(id, h, &connectionError{codeProtocol, err.Error()})
	}
	return nil
}

// reset implements end.
func (up *h2Upstream) reset(h *half, code errorCode) {
	up.link.forget(h)
	h.stream.fail(fmt.Errorf("the upstream has reset the stream: %s", code), code, code == codeRefused)
}

// goAway implements end: what the upstream has not seen goes to another connection, or
// back to the client, who may ask again.
func (up *h2Upstream) goAway(last uint32, code errorCode) {
	l := up.link
	l.mu.Lock()
	l.leaving = true
	var unseen []*half
	for id, h := range l.halves {
		if id > last {
			unseen = append(unseen, h)
		}
	}
	left := len(l.halves) - len(unseen)
	l.mu.Unlock()
	up.upstreams.drop(up)
	for _, h := range unseen {
		l.forget(h)
		h.stream.fail(fmt.Errorf("the upstream takes no more requests: %s", code), codeRefused, true)
	}
	if left == 0 {
		_ = l.conn.SetReadDeadline(past)
	}
}

// broken implements end.
func (up *h2Upstream) broken(id uint32, h *half, e *connectionError) error {
	up.link.reset(id, e.code)
	if h != nil {
		up.link.forget(h)
		h.stream.fail(fmt.Errorf("the upstream's response is not well-formed: %s", e.detail), codeProtocol, false)
	}
	return nil
}

// sweepShared lets go of the connections that were idle for too long.
func (u *upstreams) sweepShared(now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, ups := range u.shared {
		for _, up := range ups {
			if up.link.sleepy(now, u.idle.most) {
				_ = up.link.conn.SetReadDeadline(past)
			}
		}
	}
}
