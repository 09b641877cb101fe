package mitm

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"agentops/audit"
	"agentops/mitm/policy"
)

// flow is one connection of the run, from accept to its record; or, without a conn,
// the datagrams between two addresses.
type flow struct {
	proxy       *Proxy
	id          uint64
	conn        *flowConn
	source      netip.AddrPort
	destination netip.AddrPort // as the client dialled it
	process     *audit.Process // that dialled it; nil: not known
	began       time.Time

	// name is what the flow is to: the name behind the synthetic address,
	// else the SNI of a client hello. Empty: the client dialled an address and
	// has not named a host.
	name      string
	synthetic bool
	tls       bool // the client speaks TLS to us
	sni, ja4  string
	sealed    bool // its TLS is not opened

	mu       sync.Mutex
	outgoing *upstreamConn // that its request of HTTP/1 is on
	client   *h2Client     // nil: it does not speak HTTP/2
	gone     bool          // the client is, or the proxy ends

	full        bool        // there are too many, it is reset
	refusal     *refusal    // what the whole flow is refused for
	refused     atomic.Bool // a refusal is in the journal
	unreachable error       // why the upstream could not be asked what it speaks
	upstream    string      // dialled for an opaque flow
	failure     error       // what ended it

	openOnce sync.Once
	openErr  error
}

// refusal is why the run may not have something.
type refusal struct {
	reason policy.Reason
	rule   string
	source string // where the rule stands
	detail string
	hint   string // what would allow it
	status int    // of the answer to a request; 0: 403
}

// serve finds out what is spoken and hands the flow to who speaks it.
func (f *flow) serve(ctx context.Context) {
	if f.full {
		f.reset()
		return
	}
	if f.destination.Port() == 53 {
		f.serveDNS(ctx)
		return
	}
	f.route(ctx, newBufferedConn(f.conn, f), f.dialPlain)
}

// route hands a payload, be it within TLS, to who speaks its protocol. dial is
// how an opaque one is connected.
func (f *flow) route(ctx context.Context, conn *bufferedConn, dial dialFunc) {
	found, err := sniff(conn, f.silence())
	var upstream closeWriter
	if errors.Is(err, errSilent) && f.mayBeOpaque() {
		upstream, err = f.whoSpeaksFirst(ctx, conn, dial)
		if err == nil && upstream == nil {
			found, err = sniff(conn, f.handshakeTimeout())
		}
	}
	switch {
	case err != nil:
		f.fail(err)
		f.reset()
	case found == protocolTLS && !f.tls:
		f.serveTLS(ctx, conn)
	case found == protocolHTTP:
		f.serveHTTP1(ctx, conn.closeWriter, conn.reader)
	default:
		f.serveOpaque(ctx, conn, upstream, dial)
	}
}

// handshakeTimeout bounds each step of what comes before the first request.
func (f *flow) handshakeTimeout() time.Duration {
	return f.proxy.config.Limits.HandshakeTimeout
}

func (f *flow) serveDNS(ctx context.Context) {
	defer f.conn.Close()
	if f.opened("dns") == nil {
		f.failure = f.proxy.config.Resolver.ServeTCP(ctx, f.conn, f.id, f.destination)
	}
}

// host is what the flow is to, for its records and its policy.
func (f *flow) host() string {
	if f.name != "" {
		return f.name
	}
	return f.destination.Addr().String()
}

// endpoint is where its requests go to that name no other host.
func (f *flow) endpoint() endpoint {
	return endpoint{host: f.host(), port: f.destination.Port(), tls: f.tls}
}

// judge judges a target at the flow's port; nil: allowed.
func (f *flow) judge(t policy.Target) *refusal {
	if f.refusal != nil {
		return f.refusal
	}
	t.Port = f.destination.Port()
	p := f.proxy.config.Policy
	v := p.Decide(t)
	if v.Allowed {
		return nil
	}
	r := &refusal{reason: v.Reason, rule: v.Rule, source: v.Source}
	r.detail, r.hint = p.Explain(t, v)
	return r
}

// opened writes flow.open, once, and must have succeeded before a byte of the
// flow is forwarded.
func (f *flow) opened(protocol string) error {
	f.openOnce.Do(func() {
		f.openErr = f.proxy.config.Recorder.Append(audit.FlowOpen{
			Flow:        f.id,
			Protocol:    protocol,
			Source:      f.source.String(),
			Destination: f.destination.String(),
			Host:        f.host(),
			Port:        f.destination.Port(),
			SNI:         f.sni,
			JA4:         f.ja4,
			Passthrough: f.sealed,
			Process:     f.process,
		})
	})
	return f.openErr
}

// refuse records that the flow as a whole was refused.
func (f *flow) refuse(protocol string, r *refusal) {
	if f.refused.Swap(true) {
		return
	}
	// A journal that takes nothing more ends the run.
	_ = f.proxy.config.Recorder.Append(audit.Refused{
		Flow:        f.id,
		Protocol:    protocol,
		Destination: f.destination.String(),
		Host:        f.host(),
		Port:        f.destination.Port(),
		Reason:      string(r.reason),
		Rule:        r.rule,
		Detail:      r.detail,
		Process:     f.process,
	})
}

// closed writes the flow's last records; its connection's Close calls it once.
func (f *flow) closed() {
	protocol := "opaque"
	if f.tls {
		protocol = "tls"
	}
	// Who said nothing that could be told apart has opened no flow yet. The
	// error is the journal's own, which ends the run.
	_ = f.opened(protocol)
	if f.refusal != nil {
		f.refuse(protocol, f.refusal)
	}
	e := audit.FlowClose{
		Flow:          f.id,
		Upstream:      f.upstream,
		BytesSent:     f.conn.read.Load(),
		BytesReceived: f.conn.written.Load(),
		DurationMS:    time.Since(f.began).Milliseconds(),
	}
	if f.failure != nil && !isClosed(f.failure) {
		e.Error = f.failure.Error()
	}
	_ = f.proxy.config.Recorder.Append(e)
	f.proxy.forget(f)
}

// fail keeps what ended the flow for its record: its refusal when it was the
// guard's doing, else its failure.
func (f *flow) fail(err error) {
	if guard, ok := errors.AsType[*GuardError](err); ok {
		f.refusal = guard.refusal(f.host(), f.destination.Port())
		return
	}
	f.failure = err
}

// reset ends the flow so that the client sees an error, not an end of data.
func (f *flow) reset() {
	_ = f.conn.SetLinger(0) // fails only on a closed connection
	f.conn.Close()
}

// isClosed tells the ordinary ends of a connection from failures.
func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed)
}

// flowConn is the client's connection: it counts what passes, and its Close ends
// the flow.
type flowConn struct {
	*socket
	flow          *flow
	read, written atomic.Int64
	once          sync.Once
	err           error
}

func (c *flowConn) Read(p []byte) (int, error) {
	n, err := c.socket.Read(p)
	c.read.Add(int64(n))
	return n, err
}

func (c *flowConn) Write(p []byte) (int, error) {
	n, err := c.socket.Write(p)
	c.written.Add(int64(n))
	return n, err
}

func (c *flowConn) Close() error {
	c.once.Do(func() {
		c.err = c.socket.Close()
		c.flow.closed()
	})
	return c.err
}

// closeWriter is a connection whose sending side can be closed alone.
type closeWriter interface {
	net.Conn
	CloseWrite() error
}

// bufferedConn is a connection that can be read ahead of, for a flow's sake.
type bufferedConn struct {
	closeWriter
	reader *bufio.Reader
	flow   *flow
}

func newBufferedConn(conn closeWriter, f *flow) *bufferedConn {
	return &bufferedConn{closeWriter: conn, reader: bufio.NewReaderSize(conn, 512), flow: f} // enough to tell what it is
}

func (c *bufferedConn) Read(p []byte) (int, error) { return c.reader.Read(p) }
