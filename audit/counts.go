package audit

import "fmt"

// Counts are what the kernel and the journal both count: the two must agree.
type Counts struct {
	Flows         uint64 `json:"flows"`          // connections to the proxy
	Datagrams     uint64 `json:"datagrams"`      // to the resolver
	KernelRefused uint64 `json:"kernel_refused"` // datagrams and connections that the kernel refused
}

// Differences says in words what the kernel has counted and the journal does not
// tell, or the other way round.
func (kernel Counts) Differences(journal Counts) []string {
	var differences []string
	for _, c := range []struct {
		what            string
		kernel, journal uint64
	}{
		{"connections to the proxy", kernel.Flows, journal.Flows},
		{"datagrams to the resolver", kernel.Datagrams, journal.Datagrams},
		{"refusals of its own", kernel.KernelRefused, journal.KernelRefused},
	} {
		if c.kernel != c.journal {
			differences = append(differences, fmt.Sprintf("the kernel has counted %d %s, the journal tells of %d", c.kernel, c.what, c.journal))
		}
	}
	return differences
}

// countable is what of an event Counts look at.
type countable struct {
	Flow     uint64 `json:"flow"`
	Protocol string `json:"protocol"`
	What     string `json:"what"`
	Count    uint64 `json:"count"`
}

// add counts one event of a journal.
func (journal *Counts) add(kind string, e countable) {
	switch kind {
	case "flow.open":
		journal.Flows++
	case "dns.query":
		if e.Flow == 0 { // else it came over a connection
			journal.Datagrams++
		}
	case "refused":
		switch {
		case e.Flow != 0 || e.Protocol == "syscall": // by others than the redirect
		case e.Protocol == "dns": // no question, but a datagram
			journal.Datagrams++
		default:
			journal.KernelRefused++
		}
	case "lost":
		if e.What == LostDatagrams {
			journal.Datagrams += e.Count
		} else {
			journal.KernelRefused += e.Count
		}
	}
}
