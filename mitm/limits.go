package mitm

import (
	"cmp"
	"time"
)

// Limits bound what a run takes of the proxy. Those that are 0 are as in
// DefaultLimits.
type Limits struct {
	Flows            int           // open at once; those beyond are refused
	HeaderBytes      int           // of a request's head
	HandshakeTimeout time.Duration // to dial an upstream, and for TLS on either side
	HeaderTimeout    time.Duration // from a request's first byte to the end of its head
	IdleTimeout      time.Duration // between two requests of a connection
	DatagramTimeout  time.Duration // between two datagrams of a flow
}

// DefaultLimits are those of a run that sets none.
func DefaultLimits() Limits {
	return Limits{
		Flows:            10_000,
		HeaderBytes:      1 << 20,
		HandshakeTimeout: 10 * time.Second,
		HeaderTimeout:    30 * time.Second,
		IdleTimeout:      5 * time.Minute,
		DatagramTimeout:  time.Minute,
	}
}

func (l Limits) orDefaults() Limits {
	d := DefaultLimits()
	return Limits{
		Flows:            cmp.Or(l.Flows, d.Flows),
		HeaderBytes:      cmp.Or(l.HeaderBytes, d.HeaderBytes),
		HandshakeTimeout: cmp.Or(l.HandshakeTimeout, d.HandshakeTimeout),
		HeaderTimeout:    cmp.Or(l.HeaderTimeout, d.HeaderTimeout),
		IdleTimeout:      cmp.Or(l.IdleTimeout, d.IdleTimeout),
		DatagramTimeout:  cmp.Or(l.DatagramTimeout, d.DatagramTimeout),
	}
}
