package mitm

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"agentops/mitm/policy"
)

// Grant is a header with a secret value, which is put on the run's requests to one
// host over TLS, in the place of the run's own. The run never has it.
type Grant struct {
	Name   string // for the record
	Host   string // exact, in the form of policy.Host
	Port   uint16
	Header string // in canonical form
	Value  func() string
}

// grants are those for a request's host and port.
func (x *exchange) grants() []Grant {
	var found []Grant
	for _, g := range x.flow.proxy.config.Grants {
		if g.Host == x.host && g.Port == x.flow.destination.Port() {
			found = append(found, g)
		}
	}
	return found
}

// checkGrants refuses a request that cannot have the header that it would be sent
// for: without TLS, anybody on the way could read it, and a server answers TRACE
// with the headers that it got.
func (x *exchange) checkGrants() *refusal {
	for _, g := range x.grants() {
		switch {
		case !x.flow.tls:
			return &refusal{
				reason: policy.Exposed, source: "grant " + g.Name,
				detail: fmt.Sprintf("grant %s is for requests over TLS", g.Name), hint: "use https",
			}
		case slices.Contains(slices.Collect(x.request.methods()), http.MethodTrace):
			return &refusal{
				reason: policy.Exposed, source: "grant " + g.Name,
				detail: fmt.Sprintf("the answer to TRACE would tell the secret of grant %s", g.Name), hint: "use another method",
			}
		}
	}
	return nil
}

// putGrants returns the grants whose headers go on a request that is about to go out,
// and notes that they do.
func (x *exchange) putGrants() []Grant {
	if !x.flow.tls {
		return nil
	}
	x.granted = nil
	found := x.grants()
	for _, g := range found {
		x.granted = append(x.granted, g.Name)
	}
	return found
}

// covers reports whether a server might take a field for the one that is granted.
func (g *Grant) covers(name string) bool {
	return len(name) == len(g.Header) && strings.EqualFold(strings.ReplaceAll(name, "_", "-"), strings.ReplaceAll(g.Header, "_", "-"))
}
