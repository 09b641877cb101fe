package audit

import "fmt"

// Counts are what the kernel and the journal both count: the two must agree.
type Counts struct {
	Flows         uint64 `json:"flows"`          // connections to the proxy
	Datagrams     uint64 `json:"datagrams"`      // to the resolver
	Relayed       uint64 `json:"relayed"`        // datagrams to the relays
	KernelRefused uint64 `json:"kernel_refused"` // datagrams and connections that the kernel refused
}

// Differences says in words where the kernel's counts are not the journal's.
func (c Counts) Differences(journal Counts) []string {
	var differences []string
	for _, count := range []struct {
		what            string
		kernel, journal uint64
	}{
		{"connections to the proxy", c.Flows, journal.Flows},
		{"datagrams to the resolver", c.Datagrams, journal.Datagrams},
		{"datagrams to the relays", c.Relayed, journal.Relayed},
		{"refusals of its own", c.KernelRefused, journal.KernelRefused},
	} {
		if count.kernel != count.journal {
			differences = append(differences, fmt.Sprintf("the kernel has counted %d %s, the journal tells of %d", count.kernel, count.what, count.journal))
		}
	}
	return differences
}

// countable is what of an event Counts look at.
type countable struct {
	Flow     uint64 `json:"flow"`
	Protocol string `json:"protocol"`
	Reason   string `json:"reason"`
	Sent     uint64 `json:"datagrams_sent"`
	What     string `json:"what"`
	Count    uint64 `json:"count"`
}

// add counts one event of a journal.
func (c *Counts) add(kind string, e countable) {
	switch kind {
	case "flow.open":
		if e.Protocol != "udp" { // else its datagrams are counted
			c.Flows++
		}
	case "flow.close":
		c.Relayed += e.Sent
	case "dns.query":
		if e.Flow == 0 { // else it came over a connection
			c.Datagrams++
		}
	case "refused":
		switch {
		case e.Flow != 0 || e.Protocol == "syscall": // by others than the redirect
		case e.Protocol == "dns": // no question, but a datagram
			c.Datagrams++
		case e.Reason != ReasonProtocol: // a datagram that was not relayed
			c.Relayed++
		default:
			c.KernelRefused++
		}
	case "lost":
		switch e.What {
		case LostDatagrams:
			c.Datagrams += e.Count
		case LostRelayed:
			c.Relayed += e.Count
		default:
			c.KernelRefused += e.Count
		}
	}
}
