// Package policy decides what a run may reach. The decision is a pure function
// of the policy and the target.
package policy

import (
	"fmt"
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
	Mode  Mode
	Allow []Rule
	Deny  []Rule
}

// Target is what a run wants to reach: a host in the form that Host returns, and
// a port.
type Target struct {
	Host string
	Port uint16
}

// A Reason is the stable word for why something was refused.
type Reason string

// The reasons.
const (
	Denied     Reason = "denied"      // a deny rule names the target
	NotAllowed Reason = "not-allowed" // strict, and no allow rule names the target
	Address    Reason = "address"     // the address is not a public one
	Opaque     Reason = "opaque"      // strict, and the protocol cannot be seen into
	Fronting   Reason = "fronting"    // the names of one request disagree
	Malformed  Reason = "malformed"   // no valid name or request
)

// Verdict is a decision and its grounds.
type Verdict struct {
	Allowed bool
	Reason  Reason // when not allowed
	Rule    string // the rule that decided, as written; empty: the mode did
}

// Decide judges one target. An allowed target that is not public is still
// subject to the check of the address that is dialled.
func (p *Policy) Decide(t Target) Verdict {
	matches := func(r Rule) bool { return r.matches(t) }
	return p.decide(matches)
}

// DecideHost judges a host whatever the port: whether its name may be looked up.
// It is refused when all of its ports are.
func (p *Policy) DecideHost(host string) Verdict {
	if i := slices.IndexFunc(p.Deny, func(r Rule) bool { return len(r.ports) == 0 && r.matchesHost(host) }); i >= 0 {
		return Verdict{Reason: Denied, Rule: p.Deny[i].text}
	}
	allowed := Policy{Mode: p.Mode, Allow: p.Allow}
	return allowed.decide(func(r Rule) bool { return r.matchesHost(host) })
}

func (p *Policy) decide(matches func(Rule) bool) Verdict {
	if i := slices.IndexFunc(p.Deny, matches); i >= 0 {
		return Verdict{Reason: Denied, Rule: p.Deny[i].text}
	}
	if i := slices.IndexFunc(p.Allow, matches); i >= 0 {
		return Verdict{Allowed: true, Rule: p.Allow[i].text}
	}
	if p.Mode == Strict {
		return Verdict{Reason: NotAllowed}
	}
	return Verdict{Allowed: true}
}

// AllowsAddress reports whether an allow rule names the address itself or its
// network, and so permits one that is not public.
func (p *Policy) AllowsAddress(addr netip.AddrPort) bool {
	target := Target{Host: addr.Addr().Unmap().String(), Port: addr.Port()}
	return slices.ContainsFunc(p.Allow, func(r Rule) bool { return r.network.IsValid() && r.matches(target) })
}
