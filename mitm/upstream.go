package mitm

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"
)

const (
	readyFor     = 10 * time.Second // that a connection made to learn of its protocol is kept
	upstreamIdle = 90 * time.Second
	verifiedFor  = 5 * time.Minute // that a certificate counts which was seen
	maxSessions  = 256             // of upstreams that may be resumed
	maxUpstreams = 4096            // of which it is known what they speak, or that they were verified
)

// upstreams keeps the connections to the outside: HTTP goes out as it came in. Those
// of HTTP/1 are in idle.go.
type upstreams struct {
	proxy    *Proxy
	sessions tls.ClientSessionCache
	idle     idle
	serving  sync.WaitGroup // connections of HTTP/2

	mu      sync.Mutex
	shared  map[endpoint][]*h2Upstream // of HTTP/2, that take requests; nil: none is taken any more
	dialing map[endpoint]*dialing
	spoke   map[string][]string    // by host:port: the ALPN protocols of an upstream
	ready   map[string][]*tls.Conn // by host:port: of HTTP/1, connected to learn that, unused
	// by host:port: until when the certificate need not be seen again
	verified     map[string]time.Time
	certificates map[string]bool // by host:port: who has asked for a client's
}

func newUpstreams(p *Proxy) *upstreams {
	u := &upstreams{proxy: p, spoke: make(map[string][]string), ready: make(map[string][]*tls.Conn),
		verified: make(map[string]time.Time), certificates: make(map[string]bool), sessions: tls.NewLRUClientSessionCache(maxSessions)}
	u.idle.conns, u.idle.most = make(map[endpoint][]*upstreamConn), min(upstreamIdle, p.config.Limits.IdleTimeout)
	u.shared, u.dialing = make(map[endpoint][]*h2Upstream), make(map[endpoint]*dialing)
	return u
}

// protocols are those of h2 and http/1.1 that the flow's upstream speaks. The
// first time, it is asked; the answer is remembered for the run. With the error of
// an upstream that cannot be connected come both.
func (u *upstreams) protocols(ctx context.Context, f *flow) ([]string, error) {
	address := joinAddress(f.host(), f.destination.Port())
	u.mu.Lock()
	known, ok := u.spoke[address]
	u.mu.Unlock()
	if ok {
		return known, nil
	}
	both := []string{alpnHTTP2, alpnHTTP1}
	conn, err := u.dialTLS(ctx, f, f.host(), both)
	if err != nil {
		return both, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if conn.ConnectionState().NegotiatedProtocol == alpnHTTP2 {
		remember(u.spoke, address, both)
		u.share(newH2Upstream(u, f.endpoint(), conn, conn.NetConn().(*socket)))
		return both, nil
	}
	spoke := []string{alpnHTTP1}
	remember(u.spoke, address, spoke)
	u.ready[address] = append(u.ready[address], conn)
	time.AfterFunc(readyFor, func() { u.dropReady(address, conn) })
	return spoke, nil
}

// takeReady returns a connection made by protocols, once; nil: there is none.
func (u *upstreams) takeReady(address string) *tls.Conn {
	u.mu.Lock()
	defer u.mu.Unlock()
	conns := u.ready[address]
	if len(conns) == 0 {
		return nil
	}
	u.ready[address] = conns[1:]
	return conns[0]
}

func (u *upstreams) dropReady(address string, conn *tls.Conn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i, ready := range u.ready[address] {
		if ready == conn {
			u.ready[address] = append(u.ready[address][:i:i], u.ready[address][i+1:]...)
			_ = conn.Close()
		}
	}
	if len(u.ready[address]) == 0 {
		delete(u.ready, address)
	}
}

// dialSocket connects to an upstream.
func (u *upstreams) dialSocket(ctx context.Context, to endpoint) (*socket, error) {
	raw, err := u.proxy.config.Dialer.Dial(ctx, to.host, to.port)
	if err != nil {
		return nil, err
	}
	return newSocket(raw.(tcpConn))
}

// dialTLS connects to an upstream and verifies that it is who it should be. A
// failed handshake is recorded.
func (u *upstreams) dialTLS(ctx context.Context, f *flow, host string, alpn []string) (*tls.Conn, error) {
	under, err := u.dialSocket(ctx, endpoint{host: host, port: f.destination.Port()})
	if err != nil {
		return nil, err
	}
	address := joinAddress(host, f.destination.Port())
	wantsCertificate := false
	conn := tls.Client(under, &tls.Config{
		ServerName:         host,
		RootCAs:            u.proxy.config.Upstreams(),
		NextProtos:         alpn,
		MinVersion:         tls.VersionTLS12,
		ClientSessionCache: u.sessions,

		DynamicRecordSizingDisabled: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			u.mu.Lock()
			defer u.mu.Unlock()
			remember(u.certificates, address, true)
			wantsCertificate = true
			return new(tls.Certificate), nil
		},
	})
	ctx, cancel := context.WithTimeout(ctx, f.handshakeTimeout())
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = under.Close()
		if wantsCertificate && isAlert(err) {
			err = &clientCertificateError{err}
		}
		f.tlsFailure("upstream", describeUpstream(err, host))
		return nil, fmt.Errorf("TLS with %s: %w", host, err)
	}
	return conn, nil
}

// remember keeps what was learnt of an upstream, in the place of something else
// when there is much: a run makes up as many names as it likes. What is forgotten
// is learnt again.
func remember[V any](known map[string]V, address string, value V) {
	if len(known) >= maxUpstreams {
		for other := range known {
			delete(known, other)
			break
		}
	}
	known[address] = value
}

// explain returns the error with which an upstream has failed. In TLS 1.3 a client
// without a certificate is turned away behind the handshake, if need be without a
// word that reaches us.
func (u *upstreams) explain(err error, host string, port uint16) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	reason := upstreamReason(err)
	if u.certificates[joinAddress(host, port)] && (reason == reasonTLS || reason == reasonBroken) {
		return &clientCertificateError{err}
	}
	return err
}

// verify shows by a handshake of our own that the flow's upstream has a certificate
// for its name. What it wants of the client is between the two.
func (u *upstreams) verify(ctx context.Context, f *flow, alpn []string) error {
	host := f.host()
	address := joinAddress(host, f.destination.Port())
	u.mu.Lock()
	until := u.verified[address]
	u.mu.Unlock()
	if time.Now().Before(until) {
		return nil
	}
	raw, err := u.proxy.config.Dialer.Dial(ctx, host, f.destination.Port())
	if err != nil {
		return err
	}
	defer raw.Close()
	good := false
	conn := tls.Client(raw, &tls.Config{
		ServerName: host,
		RootCAs:    u.proxy.config.Upstreams(),
		NextProtos: alpn,
		MinVersion: tls.VersionTLS12,
		VerifyPeerCertificate: func([][]byte, [][]*x509.Certificate) error {
			good = true // is called when all else is
			return nil
		},
	})
	ctx, cancel := context.WithTimeout(ctx, f.handshakeTimeout())
	defer cancel()
	if err := conn.HandshakeContext(ctx); !good {
		f.tlsFailure("upstream", describeUpstream(err, host))
		return fmt.Errorf("TLS with %s: %w", host, err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	remember(u.verified, address, time.Now().Add(verifiedFor))
	return nil
}

// close lets go of all idle connections.
func (u *upstreams) close() {
	u.idle.close()
	u.mu.Lock()
	for _, ups := range u.shared {
		for _, up := range ups {
			_ = up.link.conn.Close()
		}
	}
	u.shared = nil
	u.mu.Unlock()
	u.serving.Wait()
	u.mu.Lock()
	defer u.mu.Unlock()
	for address, conns := range u.ready {
		for _, conn := range conns {
			_ = conn.Close()
		}
		delete(u.ready, address)
	}
}

// joinAddress is the reverse of splitAddress.
func joinAddress(host string, port uint16) string {
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

func splitAddress(address string) (host string, port uint16, err error) {
	host, digits, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	number, err := strconv.ParseUint(digits, 10, 16)
	return host, uint16(number), err
}
