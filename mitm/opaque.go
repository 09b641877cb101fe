package mitm

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"agentops/mitm/policy"
)

// dialFunc connects an opaque flow to its upstream.
type dialFunc func(ctx context.Context) (closeWriter, error)

// dialPlain dials the flow's host.
func (f *flow) dialPlain(ctx context.Context) (closeWriter, error) {
	conn, err := f.proxy.upstreams.dialSocket(ctx, f.endpoint())
	if err != nil {
		return nil, err // and no nil in an interface
	}
	return conn, nil
}

// whoSpeaksFirst dials the upstream of a silent client and waits for the first
// byte of either. It returns the upstream if that spoke, and nil if the client
// did: what it speaks is then to be seen as always, so that waiting is no way to
// pass for opaque.
func (f *flow) whoSpeaksFirst(ctx context.Context, client *bufferedConn, dial dialFunc) (closeWriter, error) {
	conn, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	upstream := newBufferedConn(conn, f)
	var clientErr error
	clientSpoke := make(chan struct{})
	go func() {
		defer close(clientSpoke)
		_, clientErr = client.reader.Peek(1)
		_ = upstream.SetReadDeadline(past) // wakes the Peek below
	}()
	_, err = upstream.reader.Peek(1)
	if !errors.Is(err, os.ErrDeadlineExceeded) { // it spoke, or ended without a word
		_ = client.SetReadDeadline(past)
	}
	<-clientSpoke
	switch {
	case err == nil:
		return upstream, resetDeadlines(client, upstream)
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = clientErr
	}
	_ = upstream.Close()
	if err != nil {
		return nil, err
	}
	return nil, resetDeadlines(client)
}

// past is a deadline that ends what waits.
var past = time.Unix(1, 0)

func resetDeadlines(conns ...net.Conn) error {
	for _, conn := range conns {
		if err := conn.SetDeadline(time.Time{}); err != nil {
			return err
		}
	}
	return nil
}

// serveOpaque relays what cannot be seen into. A nil upstream is dialled.
func (f *flow) serveOpaque(ctx context.Context, client, upstream closeWriter, dial dialFunc) {
	defer f.conn.Close()
	f.refusal = f.judge(policy.Target{Host: f.host(), Protocol: policy.NotHTTP})
	if f.refusal != nil || f.opened("opaque") != nil {
		f.reset()
		return
	}
	f.relay(ctx, client, upstream, dial)
}

// serveSealed relays TLS as it is. That the upstream is who it should be is seen by
// a handshake of our own, as TLS 1.3 shows its certificate to the client alone.
func (f *flow) serveSealed(ctx context.Context, client closeWriter, alpn []string) {
	defer f.conn.Close()
	f.refusal = f.judge(policy.Target{Host: f.host(), Protocol: policy.Sealed})
	if f.refusal != nil || f.opened("tls") != nil {
		f.reset()
		return
	}
	if err := f.proxy.upstreams.verify(ctx, f, alpn); err != nil {
		f.fail(err)
		f.reset()
		return
	}
	f.relay(ctx, client, nil, f.dialPlain)
}

// relay connects to the upstream, unless it is, and copies both ways.
func (f *flow) relay(ctx context.Context, client, upstream closeWriter, dial dialFunc) {
	if upstream == nil {
		var err error
		if upstream, err = dial(ctx); err != nil {
			f.fail(err)
			f.reset()
			return
		}
	}
	defer upstream.Close()
	f.upstream = upstream.RemoteAddr().String()
	if err := copyBoth(client, upstream); err != nil && !isClosed(err) {
		f.fail(err)
		f.reset()
	}
}

// copyBoth copies both ways until both sides have ended, or one has failed.
func copyBoth(client, upstream closeWriter) error {
	errs := make(chan error, 2)
	pipe := func(to, from closeWriter) {
		err := move(to, from)
		if err == nil {
			err = to.CloseWrite()
		}
		if errors.Is(err, syscall.ENOTCONN) {
			err = nil // it has ended before
		}
		if err != nil {
			// The other direction cannot do without this one.
			_ = to.SetDeadline(past)
			_ = from.SetDeadline(past)
		}
		errs <- err
	}
	go pipe(upstream, client)
	pipe(client, upstream)
	// The first to fail says why; the other was made to end.
	err := <-errs
	if other := <-errs; err == nil {
		err = other
	}
	return err
}

// move copies what one side sends until it ends. Between two connections without TLS
// the kernel does, when there is much of it.
func move(to, from closeWriter) error {
	if socketOf(to) == nil || socketOf(from) == nil {
		_, err := io.Copy(to, from)
		return err
	}
	b := &cmp.Or(counted(from), counted(to)).flow.proxy.buffers
	block := b.block()
	defer b.putBlock(block)
	for {
		n, err := from.Read(block[:])
		if n > 0 {
			if _, err := to.Write(block[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case n == len(block) && ahead(from) == 0:
			if p := newPipe(); p != nil {
				return p.move(to, from)
			}
		}
	}
}

// ahead is how many bytes were read ahead of a connection.
func ahead(conn net.Conn) int {
	if buffered, ok := conn.(*bufferedConn); ok {
		return buffered.reader.Buffered()
	}
	return 0
}

// socketOf is the connection that bytes pass unchanged; nil: there is none.
func socketOf(conn net.Conn) *socket {
	switch conn := conn.(type) {
	case *bufferedConn:
		return socketOf(conn.closeWriter)
	case *flowConn:
		return conn.socket
	case *socket:
		return conn
	}
	return nil
}

// counted is the client's end of a flow; nil: it is the other.
func counted(conn net.Conn) *flowConn {
	if buffered, ok := conn.(*bufferedConn); ok {
		conn = buffered.closeWriter
	}
	c, _ := conn.(*flowConn)
	return c
}
