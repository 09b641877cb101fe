// Package mitm is the transparent proxy of a run. It accepts every connection
// that the run makes, finds out what is spoken on it, judges it by name, opens
// TLS, and records it before a byte of it goes on.
package mitm

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"agentops/audit"
	"agentops/mitm/authority"
	"agentops/mitm/policy"
	"agentops/mitm/resolver"

	"github.com/sirupsen/logrus"
)

// Recorder takes events into the run's journal. What it could not take must not
// happen.
type Recorder interface {
	Append(audit.Event) error
}

// Config configures a Proxy. All fields but Grants, Limits, Owner and Sender are
// needed.
type Config struct {
	Policy    *policy.Policy
	Authority *authority.Authority
	Names     *resolver.Names
	Resolver  *resolver.Resolver // answers DNS over TCP
	Dialer    *Dialer
	Upstreams func() *x509.CertPool // roots that upstreams are verified against
	Recorder  Recorder
	Log       logrus.FieldLogger
	Grants    []Grant
	Limits    Limits

	// Owner names the process that has made a connection, which has just been
	// accepted, and Sender that which has just sent a datagram; nil: not known.
	Owner, Sender func(source, destination netip.AddrPort) *audit.Process
}

// Proxy serves the connections of one run.
type Proxy struct {
	config    Config
	upstreams *upstreams
	limits    limits
	buffers   buffers
	ticketKey [32]byte // seals the sessions that clients may resume

	accepted  atomic.Uint64 // connections
	received  atomic.Uint64 // datagrams
	queued    atomic.Int64  // bytes of datagrams that wait to be sent on
	datagrams sync.Pool     // of *[maxDatagram]byte

	mu       sync.Mutex
	lastFlow uint64
	flows    map[*flow]struct{}
	closed   bool
	open     sync.WaitGroup // flows and exchanges
}

// New makes a proxy.
func New(config Config) *Proxy {
	config.Limits = config.Limits.orDefaults()
	config.Dialer = config.Dialer.within(config.Limits.HandshakeTimeout)
	p := &Proxy{
		config:    config,
		limits:    defaultLimits,
		flows:     make(map[*flow]struct{}),
		datagrams: sync.Pool{New: func() any { return new([maxDatagram]byte) }},
	}
	rand.Read(p.ticketKey[:]) // never fails
	p.upstreams = newUpstreams(p)
	return p
}

// Serve accepts connections until ctx ends, then closes them all and returns nil
// once each has its record. It may be called for several listeners at once.
func (p *Proxy) Serve(ctx context.Context, listeners ...net.Listener) error {
	var accepting, serving sync.WaitGroup
	errs := make(chan error, len(listeners))
	watching, stopWatching := context.WithCancel(ctx)
	serving.Go(func() { p.watch(watching) })
	for _, listener := range listeners {
		accepting.Go(func() {
			if err := p.accept(ctx, listener); err != nil {
				errs <- err
			}
		})
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-errs:
	}
	for _, listener := range listeners {
		err = errors.Join(err, ignoreClosed(listener.Close()))
	}
	accepting.Wait()
	// Who serves a flow sees its connection fail, and writes its records.
	p.cutAll()
	p.open.Wait()
	stopWatching()
	serving.Wait()
	p.upstreams.close()
	return err
}

// accept hands every connection of one listener to its own goroutine.
func (p *Proxy) accept(ctx context.Context, listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			// Out of descriptors or memory: those connections wait in the
			// backlog, the others go on.
			if ne, ok := errors.AsType[*net.OpError](err); ok && ne.Temporary() {
				p.config.Log.WithError(err).Warn("accept a connection of the run")
				if !pause(ctx, 50*time.Millisecond) {
					return nil
				}
				continue
			}
			return fmt.Errorf("accept a connection of the run: %w", err)
		}
		f := p.newFlow(conn)
		if f == nil {
			conn.Close()
			continue
		}
		go f.serve(ctx)
	}
}

// newFlow takes a connection into the books; nil when the proxy is closing.
func (p *Proxy) newFlow(conn net.Conn) *flow {
	socket, err := newSocket(conn.(tcpConn))
	if err != nil {
		return nil // it was closed
	}
	f := p.describe(addrPort(conn.RemoteAddr()), addrPort(conn.LocalAddr()), p.config.Owner)
	f.conn = &flowConn{socket: socket, flow: f}
	p.accepted.Add(1)
	if !p.enter(f) {
		return nil
	}
	return f
}

// describe says what is known of a flow at its beginning.
func (p *Proxy) describe(source, destination netip.AddrPort, owner func(source, destination netip.AddrPort) *audit.Process) *flow {
	f := &flow{
		proxy:       p,
		source:      source,
		destination: destination,
		began:       time.Now(),
	}
	f.name, f.synthetic = p.config.Names.Name(f.destination.Addr())
	if f.synthetic && f.name == "" {
		f.refusal = &refusal{reason: policy.Address, detail: "the address belongs to no name: it was not given by this run's resolver"}
	}
	if owner != nil {
		f.process = owner(f.source, f.destination)
	}
	return f
}

// enter gives a flow its number and takes it into the books, unless the proxy is
// closing.
func (p *Proxy) enter(f *flow) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	if most := p.config.Limits.Flows; len(p.flows) >= most {
		f.full = true
		f.refusal = &refusal{reason: policy.Limit, detail: fmt.Sprintf("the run has %d flows open already", most)}
	}
	p.lastFlow++
	f.id = p.lastFlow
	p.flows[f] = struct{}{}
	p.open.Add(1)
	return true
}

// forget takes a closed flow out of the books.
func (p *Proxy) forget(f *flow) {
	p.mu.Lock()
	delete(p.flows, f)
	p.mu.Unlock()
	p.open.Done()
}

// cutAll closes every connection under its flow, and lets none begin.
func (p *Proxy) cutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for f := range p.flows {
		if f.conn != nil {
			_ = f.conn.socket.Close()
			f.breakOff()
		}
	}
}

// Accepted is how many connections were taken so far.
func (p *Proxy) Accepted() uint64 { return p.accepted.Load() }

func addrPort(addr net.Addr) netip.AddrPort {
	ap := addr.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// pause waits; false: ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
