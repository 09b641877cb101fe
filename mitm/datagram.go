package mitm

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"agentops/audit"
	"agentops/mitm/policy"
)

// What waits to be sent on is dropped beyond these.
const (
	maxQueue       = 64      // datagrams of a flow
	maxQueuedBytes = 8 << 20 // of all flows
)

// maxDatagram is more than any datagram holds, in bytes.
const maxDatagram = 1 << 16

// Datagrams is a socket that datagrams to many destinations come to.
type Datagrams interface {
	// Receive waits for a datagram and tells from and to where it was sent.
	Receive(buf []byte) (n int, source, destination netip.AddrPort, err error)
	// Answer sends a datagram to source as destination's.
	Answer(payload []byte, source, destination netip.AddrPort) error
	// Refuse lets source know that nobody is at destination.
	Refuse(source, destination netip.AddrPort) error
	SetReadDeadline(time.Time) error
}

// ServeDatagrams relays the datagrams of a socket that rules allow, and refuses the
// others, until ctx ends. It returns once each flow has its record. It may be called
// for several sockets at once, beside Serve.
func (p *Proxy) ServeDatagrams(ctx context.Context, socket Datagrams) error {
	s := &relays{proxy: p, socket: socket, open: make(map[endpoints]*relay)}
	ctx, cancel := context.WithCancel(ctx)
	defer s.serving.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = socket.SetReadDeadline(past) })
	defer stop()
	buf := make([]byte, maxDatagram)
	for {
		n, source, destination, err := socket.Receive(buf)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("receive datagrams of the run: %w", err)
		}
		s.take(ctx, endpoints{source, destination}, buf[:n])
		p.received.Add(1)
	}
}

// Received is how many datagrams were taken so far.
func (p *Proxy) Received() uint64 { return p.received.Load() }

// endpoints tell the flows of one socket apart.
type endpoints struct{ source, destination netip.AddrPort }

// relays are the flows of one socket.
type relays struct {
	proxy   *Proxy
	socket  Datagrams
	serving sync.WaitGroup

	mu   sync.Mutex
	open map[endpoints]*relay
}

// take gives a datagram to its flow, which begins with it if it may.
func (s *relays) take(ctx context.Context, ends endpoints, payload []byte) {
	s.mu.Lock()
	r := s.open[ends]
	s.mu.Unlock()
	if r != nil && r.offer(payload) {
		return
	}
	p := s.proxy
	f := p.describe(ends.source, ends.destination, p.config.Sender)
	if f.refusal = f.judge(policy.Target{Host: f.host(), Protocol: policy.UDP}); f.refusal == nil {
		if !p.enter(f) {
			return
		}
		if f.full {
			p.forget(f)
			f.id = 0 // there is none
		}
	}
	if f.refusal != nil {
		f.refuse("udp", f.refusal)
		s.refuse(ends)
		return
	}
	r = &relay{flow: f, relays: s, queue: make(chan []byte, maxQueue)}
	r.offer(payload)
	s.mu.Lock()
	s.open[ends] = r
	s.mu.Unlock()
	s.serving.Go(func() { r.serve(ctx) })
}

// refuse tells the client, as the kernel would.
func (s *relays) refuse(ends endpoints) {
	if err := s.socket.Refuse(ends.source, ends.destination); err != nil {
		s.proxy.config.Log.WithError(err).Debug("refuse a datagram of the run")
	}
}

// relay is the datagrams between a client and a destination.
type relay struct {
	*flow
	relays *relays
	queue  chan []byte // that the client has sent

	mu       sync.Mutex
	ended    bool // takes no more
	active   time.Time
	sent     traffic // by the client
	received traffic // for it
	dropped  uint64  // of these
}

type traffic struct {
	datagrams uint64
	bytes     int64
}

func (t *traffic) add(payload []byte) {
	t.datagrams++
	t.bytes += int64(len(payload))
}

// offer takes a datagram of the client's, unless the relay has ended. One that finds
// no room is dropped.
func (r *relay) offer(payload []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return false
	}
	r.active = time.Now()
	r.sent.add(payload)
	if r.proxy.queued.Add(int64(len(payload))) <= maxQueuedBytes {
		select {
		case r.queue <- bytes.Clone(payload):
			return true
		default:
		}
	}
	r.proxy.queued.Add(-int64(len(payload)))
	r.dropped++
	return true
}

// next takes a datagram off the queue's books.
func (r *relay) next(payload []byte) []byte {
	r.proxy.queued.Add(-int64(len(payload)))
	return payload
}

func (r *relay) drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dropped++
}

// expire ends the relay if there was no datagram for so long, else says how long it
// may still have.
func (r *relay) expire(idle time.Duration) (left time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	left = idle - time.Since(r.active)
	r.ended = left <= 0 && len(r.queue) == 0
	return max(left, time.Millisecond)
}

// serve relays until the flow is over.
func (r *relay) serve(ctx context.Context) {
	defer r.close()
	if r.opened("udp") != nil {
		return
	}
	upstream, err := r.proxy.config.Dialer.DialUDP(ctx, r.host(), r.destination.Port())
	if err == nil {
		r.upstream = upstream.RemoteAddr().String()
		err = r.relay(ctx, upstream)
	}
	if err != nil && ctx.Err() == nil {
		r.fail(err)
	}
}

// relay copies both ways until no datagram comes any more, or one side has failed.
func (r *relay) relay(ctx context.Context, upstream *net.UDPConn) error {
	var receiving sync.WaitGroup
	defer func() {
		_ = upstream.Close() // ends receive
		receiving.Wait()
	}()
	failed := make(chan error, 1)
	receiving.Go(func() { failed <- r.receive(upstream) })
	idle := r.proxy.config.Limits.DatagramTimeout
	timer := time.NewTimer(idle)
	defer timer.Stop()
	for {
		select {
		case payload := <-r.queue:
			_, err := upstream.Write(r.next(payload))
			if err != nil {
				r.drop()
			}
			if err != nil && !errors.Is(err, syscall.EMSGSIZE) {
				return err
			}
		case err := <-failed:
			return err
		case <-timer.C:
			left := r.expire(idle)
			if r.ended {
				return nil
			}
			timer.Reset(left)
		case <-ctx.Done():
			return nil
		}
	}
}

// receive passes on what the upstream sends. The kernel has taken it from nobody
// else.
func (r *relay) receive(upstream *net.UDPConn) error {
	raw, err := upstream.SyscallConn()
	if err != nil {
		return err
	}
	for {
		// A flow that waits, as most do, needs no memory for it.
		var buf *[maxDatagram]byte
		var n int
		var readErr error
		err := raw.Read(func(fd uintptr) bool {
			buf = r.proxy.datagrams.Get().(*[maxDatagram]byte)
			n, readErr = syscall.Read(int(fd), buf[:])
			if readErr != syscall.EAGAIN {
				return true
			}
			r.proxy.datagrams.Put(buf)
			return false
		})
		if err = cmp.Or(err, readErr); err != nil {
			return fmt.Errorf("receive from %s: %w", r.upstream, err)
		}
		err = r.relays.socket.Answer(buf[:n], r.source, r.destination)
		r.answered(buf[:n], err)
		r.proxy.datagrams.Put(buf)
	}
}

func (r *relay) answered(payload []byte, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.active = time.Now()
	r.received.add(payload)
	if err != nil {
		r.proxy.config.Log.WithError(err).Debug("pass a datagram on to the run")
		r.dropped++
	}
}

// close writes the flow's last records and lets the client know if it has failed.
func (r *relay) close() {
	r.mu.Lock()
	r.ended = true
	for len(r.queue) > 0 {
		r.next(<-r.queue)
		r.dropped++
	}
	r.mu.Unlock()
	ends := endpoints{r.source, r.destination}
	r.relays.mu.Lock()
	if r.relays.open[ends] == r { // else there is another already
		delete(r.relays.open, ends)
	}
	r.relays.mu.Unlock()
	if r.refusal != nil {
		r.refuse("udp", r.refusal)
	}
	e := audit.FlowClose{
		Flow:              r.id,
		Upstream:          r.upstream,
		BytesSent:         r.sent.bytes,
		BytesReceived:     r.received.bytes,
		DatagramsSent:     r.sent.datagrams,
		DatagramsReceived: r.received.datagrams,
		Dropped:           r.dropped,
		DurationMS:        time.Since(r.began).Milliseconds(),
	}
	if r.failure != nil {
		e.Error = r.failure.Error()
	}
	_ = r.proxy.config.Recorder.Append(e) // its error is the journal's own, which ends the run
	if r.refusal != nil || r.failure != nil {
		r.relays.refuse(ends)
	}
	r.proxy.forget(r.flow)
}
