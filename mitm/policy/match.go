package policy

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// narrow reports whether the rule names only some requests of its targets.
func (r Rule) narrow() bool { return len(r.methods) > 0 || len(r.paths) > 0 }

// mayName reports whether something of the target is something of the rule,
// requests aside.
func (r Rule) mayName(t Target) bool {
	if t.Port != 0 && !r.namesPort(t.Port) || !r.namesHost(t.Host) {
		return false
	}
	return r.protocol == "" || t.Protocol == "" || (r.protocol == UDP) == (t.Protocol == UDP)
}

// denies is the verdict of a rule that denies on a target that is wholly its own.
// What cannot be seen into may be any request, and so one that is denied.
func (r Rule) denies(t Target) (v Verdict, ok bool) {
	v = Verdict{Reason: Denied, Rule: r.text, Source: r.source}
	whole := (t.Port != 0 || len(r.ports) == 0) && (r.protocol == "" || t.Protocol != "")
	if !r.mayName(t) || !whole {
		return v, false
	}
	if !r.narrow() {
		return v, true
	}
	switch t.Protocol {
	case NotHTTP, UDP, Sealed:
		v.Reason, v.Detail = Opaque, "what cannot be seen into might be a request that the rule denies"
		return v, true
	case TCP, "":
		return v, false
	}
	if len(r.methods) > 0 && !r.namesMethod(strings.ToUpper(t.Method)) {
		return v, false
	}
	if len(r.paths) == 0 {
		return v, true
	}
	if t.Path == "" {
		return v, false
	}
	path, err := Path(t.Path)
	if err != nil {
		v.Reason, v.Detail = Malformed, malformedPath(err)
		return v, true
	}
	return v, slices.ContainsFunc(r.paths, func(g glob) bool { return g.matchesLoosely(path) })
}

// allows is the verdict of a rule that allows on a target: its reason is empty
// when the rule does not concern it.
func (r Rule) allows(t Target, mode Mode) Verdict {
	if !r.mayName(t) {
		return Verdict{}
	}
	allowed := Verdict{Allowed: true, Rule: r.text, Source: r.source}
	if r.protocol != "" {
		return allowed
	}
	switch t.Protocol {
	case UDP:
		return Verdict{}
	case NotHTTP:
		if mode == Strict || r.narrow() {
			return Verdict{Reason: Opaque, Detail: "it is no HTTP, for which a rule with tcp: is wanted"}
		}
	case Sealed:
		if r.narrow() {
			return Verdict{Reason: Opaque, Detail: "its TLS is not opened, and the rule allows some requests only"}
		}
	case HTTP:
		if len(r.methods) > 0 && t.Method != "" && !r.namesMethod(t.Method) {
			return Verdict{}
		}
		if len(r.paths) == 0 || t.Path == "" {
			return allowed
		}
		path, err := Path(t.Path)
		if err != nil {
			return Verdict{Reason: Malformed, Rule: r.text, Source: r.source, Detail: malformedPath(err)}
		}
		if !slices.ContainsFunc(r.paths, func(g glob) bool { return g.matches(path) }) {
			return Verdict{}
		}
	}
	return allowed
}

// namesMethod reports whether the rule has a method. What begins a WebSocket is a CONNECT
// over HTTP/2 (RFC 8441) and a GET before: a rule for GET is for both.
func (r Rule) namesMethod(method string) bool {
	return slices.Contains(r.methods, method) || method == http.MethodConnect && slices.Contains(r.methods, http.MethodGet)
}

func malformedPath(err error) string {
	return "the path can be read in more than one way, and a rule asks for it: " + err.Error()
}

func (r Rule) namesPort(port uint16) bool {
	return len(r.ports) == 0 || slices.ContainsFunc(r.ports, func(p portRange) bool { return p.first <= port && port <= p.last })
}

func (r Rule) namesHost(host string) bool {
	switch {
	case r.any:
		return true
	case r.network.IsValid():
		addr, err := netip.ParseAddr(host)
		return err == nil && r.network.Contains(addr)
	case strings.HasPrefix(r.host, "."):
		return strings.HasSuffix(host, r.host)
	}
	return r.host != "" && r.host == host
}
