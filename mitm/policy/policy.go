// Package policy decides what a run may reach. The decision is a pure function
// of the policy and the target.
package policy

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
)

// Mode says what happens to a target that no rule names.
type Mode string

// The modes.
const (
	Permissive Mode = "permissive" // names and public addresses are allowed
	Strict     Mode = "strict"     // nothing is
)

// ParseMode reads a mode; the empty string is Permissive.
func ParseMode(text string) (Mode, error) {
	switch mode := Mode(text); mode {
	case "":
		return Permissive, nil
	case Permissive, Strict:
		return mode, nil
	}
	return "", fmt.Errorf("network policy %q is neither %q nor %q", text, Permissive, Strict)
}

// Policy is what a run may reach. Deny beats allow.
type Policy struct {
	Mode   Mode
	Source string // where the mode was set, for verdicts
	Allow  []Rule
	Deny   []Rule
	Bound  *Bound // nil: none

	// Passthrough names the hosts whose TLS is not opened. They must be allowed
	// as well.
	Passthrough []Rule
}

// Bound is a list of what may be allowed at all: a target must be allowed by one
// of its rules as well, whatever the policy says.
type Bound struct {
	Mode   Mode   // in Permissive, a rule without a protocol names a host's opaque flows as well
	Source string // where it stands, for verdicts
	Allow  []Rule
}

// Protocol is what is spoken with a target.
type Protocol string

// The protocols.
const (
	HTTP    Protocol = "http"   // with TLS or without, any version
	NotHTTP Protocol = "opaque" // anything else over TCP
	TCP     Protocol = "tcp"    // one of the two: a connection on which nothing was said yet
	UDP     Protocol = "udp"
	Sealed  Protocol = "sealed" // TLS that is not opened
)

// Target is what a run wants to reach. What it leaves open is judged by its best
// case: such a target is refused only when all that it may be is refused.
type Target struct {
	Host     string   // in the form that the function Host returns
	Port     uint16   // 0: open
	Protocol Protocol // empty: open
	Method   string   // of HTTP; empty: open
	Path     string   // of HTTP, as it is sent, without the query; empty: open
}

// A Reason is the stable word for why something was refused.
type Reason string

// The reasons.
const (
	Denied     Reason = "denied"      // a deny rule names the target
	NotAllowed Reason = "not-allowed" // no allow rule names the target, and the mode wants one
	Address    Reason = "address"     // the address is not a public one
	Opaque     Reason = "opaque"      // what is spoken cannot be seen into
	Fronting   Reason = "fronting"    // the names of one request disagree
	Malformed  Reason = "malformed"   // no valid name or request
	Exposed    Reason = "exposed"     // a secret that is granted for it would not stay one
	Limit      Reason = "limit"       // there are too many at once
)

// Verdict is a decision and its grounds.
type Verdict struct {
	Allowed bool
	Reason  Reason // when not allowed
	Rule    string // the rule that decided, as written; empty: the mode or a list did
	Source  string // where what decided stands
	Bound   bool   // the bound decided
	Detail  string // what else is to be said
}

// Decide judges one target. An allowed target that is not public is still
// subject to the check of the address that is dialled.
func (p *Policy) Decide(t Target) Verdict {
	for _, rule := range p.Deny {
		if v, ok := rule.denies(t); ok {
			return v
		}
	}
	if p.Bound != nil {
		if v, _ := admit(p.Bound.Allow, p.Bound.Mode, t); !v.Allowed {
			v.Source, v.Bound = p.Bound.Source, true
			return v
		}
	}
	v, alone := admit(p.Allow, p.Mode, t)
	if v.Allowed {
		return v
	}
	if p.Mode != Strict && t.Protocol != UDP && !alone {
		return Verdict{Allowed: true, Source: p.Source}
	}
	v.Source = p.Source
	return v
}

// DecideHost judges a host whatever is wanted of it: whether its name may be
// looked up.
func (p *Policy) DecideHost(host string) Verdict {
	return p.Decide(Target{Host: host})
}

// UDPPorts are the ports, from first to last, at which a rule allows UDP with some
// host.
func (p *Policy) UDPPorts() (ranges [][2]uint16) {
	for _, rule := range p.Allow {
		if rule.protocol != UDP {
			continue
		}
		if len(rule.ports) == 0 {
			ranges = append(ranges, [2]uint16{1, math.MaxUint16})
		}
		for _, r := range rule.ports {
			ranges = append(ranges, [2]uint16{r.first, r.last})
		}
	}
	return ranges
}

// admit looks for a rule that allows a target. Without one, it is refused with
// the reason that tells most.
//
// An address that a rule with methods or paths names is for rules of addresses
// alone: it may be private, and was a wider rule or the mode to let other requests
// pass, the rule would have opened it to them.
func admit(rules []Rule, mode Mode, t Target) (v Verdict, alone bool) {
	alone = slices.ContainsFunc(rules, func(r Rule) bool { return r.network.IsValid() && r.narrow() && r.mayName(t) })
	refused := Verdict{Reason: NotAllowed}
	for _, rule := range rules {
		if alone && !rule.network.IsValid() {
			continue
		}
		v := rule.allows(t, mode)
		if v.Allowed {
			return v, alone
		}
		if refused.Reason == NotAllowed && v.Reason != "" {
			refused = v
		}
	}
	return refused, alone
}

// AllowsAddress reports whether an allow rule names the address itself or its
// network, and so permits one that is not public. Of a bound as well one must.
func (p *Policy) AllowsAddress(protocol Protocol, addr netip.AddrPort) bool {
	t := addressTarget(protocol, addr)
	names := func(mode Mode, rules []Rule) bool {
		return slices.ContainsFunc(rules, func(r Rule) bool { return r.network.IsValid() && r.allows(t, mode).Allowed })
	}
	return names(Permissive, p.Allow) && p.boundAllows(t)
}

// DecidePinned judges an address that a name was pinned to. A pin may lead to any,
// but not past a rule that denies the address, nor out of a bound.
func (p *Policy) DecidePinned(protocol Protocol, addr netip.AddrPort) Verdict {
	if v := p.DecideAddress(protocol, addr); !v.Allowed {
		return v
	}
	if !p.boundAllows(addressTarget(protocol, addr)) {
		return Verdict{Reason: NotAllowed, Source: p.Bound.Source, Bound: true}
	}
	return Verdict{Allowed: true}
}

// DecideAddress judges an address that is about to be dialled, whatever name has
// led to it, by the rules that deny networks.
func (p *Policy) DecideAddress(protocol Protocol, addr netip.AddrPort) Verdict {
	for _, rule := range p.Deny {
		if v, ok := rule.denies(addressTarget(protocol, addr)); ok && rule.network.IsValid() {
			return v
		}
	}
	return Verdict{Allowed: true}
}

// boundAllows reports whether a rule of the bound names the address itself or its
// network; without a bound, all are.
func (p *Policy) boundAllows(t Target) bool {
	return p.Bound == nil || slices.ContainsFunc(p.Bound.Allow, func(r Rule) bool {
		return r.network.IsValid() && r.allows(t, Permissive).Allowed
	})
}

func addressTarget(protocol Protocol, addr netip.AddrPort) Target {
	return Target{Host: addr.Addr().Unmap().String(), Port: addr.Port(), Protocol: protocol}
}
