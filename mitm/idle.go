package mitm

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// maxIdle is how many unused connections are kept to one upstream: as many as a client
// of many connections has answers under way at once, or most of those would be closed and
// dialled again. The one that was used last is taken first, so that a surplus grows old.
const maxIdle = 1024

// endpoint is where requests go to. A connection serves one.
type endpoint struct {
	host string
	port uint16
	tls  bool
}

// upstreamConn is a connection to an upstream of HTTP/1.
type upstreamConn struct {
	net.Conn // that is written to, with TLS or without
	under    *socket
	to       endpoint
	address  string // ADDRESS:PORT
	source   source
	reader   *bufio.Reader // nil while it is idle
	kept     bool          // it has served a request before
	since    time.Time     // it is idle
}

// silent reports whether nothing has come on a connection that waits for a request,
// neither its end nor what would pass for the response to that. What TLS has to say
// for itself is taken in.
func (u *upstreamConn) silent() bool {
	var one [1]byte
	u.under.in.look = true
	_, err := u.Read(one[:])
	u.under.in.look = false
	return errors.Is(err, os.ErrDeadlineExceeded) // which TLS takes for no failure
}

// idle keeps the connections that wait for another request.
type idle struct {
	most  time.Duration // that one is kept
	mu    sync.Mutex
	conns map[endpoint][]*upstreamConn // nil: none is kept any more
}

// take returns the connection that was used last; nil: there is none.
func (i *idle) take(to endpoint) *upstreamConn {
	for {
		i.mu.Lock()
		conns := i.conns[to]
		if len(conns) == 0 {
			i.mu.Unlock()
			return nil
		}
		u := conns[len(conns)-1]
		conns[len(conns)-1] = nil
		i.conns[to] = conns[:len(conns)-1]
		i.mu.Unlock()
		if u.silent() {
			return u
		}
		_ = u.Close()
	}
}

// put keeps a connection on which nothing is left to be read.
func (i *idle) put(u *upstreamConn) {
	u.kept, u.since = true, time.Now()
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.conns == nil || len(i.conns[u.to]) >= maxIdle {
		_ = u.Close()
		return
	}
	i.conns[u.to] = append(i.conns[u.to], u)
}

// sweep lets go of the connections that have been idle for too long.
func (i *idle) sweep(now time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for to, conns := range i.conns {
		n := 0
		for n < len(conns) && now.Sub(conns[n].since) > i.most { // the oldest are in front
			_ = conns[n].Close()
			n++
		}
		if n == len(conns) {
			delete(i.conns, to)
		} else if n > 0 {
			i.conns[to] = append([]*upstreamConn(nil), conns[n:]...)
		}
	}
}

// close lets go of all, and keeps none from now on.
func (i *idle) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, conns := range i.conns {
		for _, u := range conns {
			_ = u.Close()
		}
	}
	i.conns = nil
}

// connect returns a connection for a request of the flow's, kept or new.
func (u *upstreams) connect(ctx context.Context, f *flow, to endpoint) (*upstreamConn, error) {
	if conn := u.idle.take(to); conn != nil {
		return conn, nil
	}
	return u.dial(ctx, f, to)
}

// dial returns a new connection.
func (u *upstreams) dial(ctx context.Context, f *flow, to endpoint) (*upstreamConn, error) {
	if !to.tls {
		under, err := u.dialSocket(ctx, to)
		if err != nil {
			return nil, err
		}
		return newUpstreamConn(under, under, to), nil
	}
	for {
		conn := u.takeReady(joinAddress(to.host, to.port))
		if conn == nil {
			break
		}
		if ready := newUpstreamConn(conn, conn.NetConn().(*socket), to); ready.silent() {
			return ready, nil
		}
		_ = conn.Close()
	}
	conn, err := u.dialTLS(ctx, f, to.host, []string{alpnHTTP1})
	if err != nil {
		return nil, err
	}
	return newUpstreamConn(conn, conn.NetConn().(*socket), to), nil
}

func newUpstreamConn(conn net.Conn, under *socket, to endpoint) *upstreamConn {
	return &upstreamConn{Conn: conn, under: under, to: to, address: conn.RemoteAddr().String(), source: source{conn: conn}}
}

// CloseWrite implements closeWriter.
func (u *upstreamConn) CloseWrite() error { return u.Conn.(closeWriter).CloseWrite() }
