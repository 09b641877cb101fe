package mitm

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
)

// lookAfter is how often it is looked whether clients that wait are still there, and
// which idle connections are so for too long.
const lookAfter = time.Second

// watch looks after the connections of HTTP/1 until ctx ends. Nobody reads from a client
// whose response is awaited: it may send its next request, or no more, and wait.
func (p *Proxy) watch(ctx context.Context) {
	ticker := time.NewTicker(lookAfter)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			p.upstreams.idle.sweep(now)
			p.upstreams.sweepShared(now)
			p.sweepClients(now)
		}
		for _, f := range p.waiting() {
			if f.clientIsGone() {
				f.breakOff()
			}
		}
	}
}

// waiting are the flows with a request of HTTP/1 at an upstream.
func (p *Proxy) waiting() []*flow {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found []*flow
	for f := range p.flows {
		f.mu.Lock()
		if f.outgoing != nil {
			found = append(found, f)
		}
		f.mu.Unlock()
	}
	return found
}

// clientIsGone reports whether the connection is wholly closed. A client that
// exits looks like one that sends no more, until the kernel's probes are
// answered with a reset.
func (f *flow) clientIsGone() bool {
	const closed = 7 // TCP_CLOSE
	gone := false
	err := f.conn.raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		gone = err != nil || info.State == closed
	})
	return gone || err != nil
}

// sweepClients ends the clients of HTTP/2 that have asked nothing for too long.
func (p *Proxy) sweepClients(now time.Time) {
	p.mu.Lock()
	var clients []*h2Client
	for f := range p.flows {
		if c := f.http2(); c != nil {
			clients = append(clients, c)
		}
	}
	p.mu.Unlock()
	for _, c := range clients {
		c.sleepy(now, p.config.Limits.IdleTimeout)
	}
}
