package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ParsePassthrough reads HOST[:PORTS], "*.SUFFIX" or an address: whose TLS is not
// opened.
func ParsePassthrough(text string) (Rule, error) {
	rule, err := ParseRule(text)
	switch {
	case err != nil:
		return Rule{}, fmt.Errorf("passthrough: %w", err)
	case rule.any || rule.protocol != "" || rule.narrow():
		return Rule{}, fmt.Errorf("passthrough: %w", errors.New("rule "+text+" is not HOST[:PORTS] or *.SUFFIX[:PORTS]"))
	}
	return rule, nil
}

// PassesThrough reports whether TLS with a host is left unopened.
func (p *Policy) PassesThrough(host string, port uint16) bool {
	t := Target{Host: host, Port: port}
	return slices.ContainsFunc(p.Passthrough, func(r Rule) bool { return r.mayName(t) })
}

// Within reports whether all hosts and ports of the rule are of another as well.
func (r Rule) Within(other Rule) bool {
	var hosts bool
	switch {
	case other.any:
		hosts = true
	case other.network.IsValid():
		hosts = r.network.IsValid() && other.network.Bits() <= r.network.Bits() && other.network.Contains(r.network.Addr())
	case strings.HasPrefix(other.host, "."):
		hosts = strings.HasSuffix(r.host, other.host)
	default:
		hosts = r.host != "" && r.host == other.host
	}
	ports := len(other.ports) == 0 || len(r.ports) > 0 && !slices.ContainsFunc(r.ports, func(p portRange) bool {
		return !slices.ContainsFunc(other.ports, func(o portRange) bool { return o.first <= p.first && p.last <= o.last })
	})
	return hosts && ports
}
