package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// Rule names targets: a host, every host below a suffix ("*.example.com", which
// is not example.com itself), every host ("*"), an address or a network, each
// with or without ports.
type Rule struct {
	text    string
	host    string       // exact; "." before it: a suffix; empty with no network: any
	network netip.Prefix // valid: an address or a network
	ports   []portRange  // empty: all
}

type portRange struct{ first, last uint16 }

// String is the rule as it was written.
func (r Rule) String() string { return r.text }

// ParseRule reads HOST[:PORTS], where PORTS are numbers and ranges with commas
// between: "example.com", "*.example.com:443", "10.0.0.0/8:22,8000-8999",
// "[2001:db8::1]:443".
func ParseRule(text string) (Rule, error) {
	rule := Rule{text: text}
	host, ports, err := splitRule(text)
	if err != nil {
		return Rule{}, fmt.Errorf("rule %q: %w", text, err)
	}
	if rule.ports, err = parsePorts(ports); err != nil {
		return Rule{}, fmt.Errorf("rule %q: %w", text, err)
	}
	if err := rule.parseHost(host); err != nil {
		return Rule{}, fmt.Errorf("rule %q: %w", text, err)
	}
	return rule, nil
}

// ParseRules reads a list of rules.
func ParseRules(texts []string) ([]Rule, error) {
	rules := make([]Rule, 0, len(texts))
	for _, text := range texts {
		rule, err := ParseRule(text)
		if err != nil {
			return nil, err
		}
		rules = append(rules, rule)
	}
	return rules, nil
}

// splitRule takes the ports off a rule. An IPv6 address or network is in
// brackets when ports follow.
func splitRule(text string) (host, ports string, err error) {
	if strings.Contains(text, "://") {
		return "", "", fmt.Errorf("it is a host with ports, without scheme and path")
	}
	if rest, ok := strings.CutPrefix(text, "["); ok {
		host, after, ok := strings.Cut(rest, "]")
		if !ok {
			return "", "", fmt.Errorf("the bracket is not closed")
		}
		if after == "" {
			return host, "", nil
		}
		ports, ok := strings.CutPrefix(after, ":")
		if !ok || ports == "" {
			return "", "", fmt.Errorf("after the bracket only :PORTS may follow")
		}
		return host, ports, nil
	}
	if strings.Count(text, ":") > 1 {
		return text, "", nil // IPv6
	}
	host, ports, found := strings.Cut(text, ":")
	if found && ports == "" {
		return "", "", fmt.Errorf("no port follows the colon")
	}
	return host, ports, nil
}

func parsePorts(text string) ([]portRange, error) {
	if text == "" {
		return nil, nil
	}
	var ranges []portRange
	for part := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		low, lowErr := strconv.ParseUint(first, 10, 16)
		high, highErr := strconv.ParseUint(last, 10, 16)
		if lowErr != nil || highErr != nil || low == 0 || high < low {
			return nil, fmt.Errorf("%q is no port or range of ports (1 to 65535)", part)
		}
		ranges = append(ranges, portRange{uint16(low), uint16(high)})
	}
	return ranges, nil
}

func (r *Rule) parseHost(host string) error {
	if host == "*" {
		return nil
	}
	if prefix, err := netip.ParsePrefix(host); err == nil {
		if prefix.Masked() != prefix {
			return fmt.Errorf("network %s has bits beyond its length; write %s", host, prefix.Masked())
		}
		r.network = prefix
		return nil
	}
	if addr, err := netip.ParseAddr(host); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		r.network = netip.PrefixFrom(addr, addr.BitLen())
		return nil
	}
	suffix, isSuffix := strings.CutPrefix(host, "*.")
	name, err := Host(suffix)
	if err != nil {
		return err
	}
	if strings.Contains(name, "*") {
		return fmt.Errorf("a * stands only for whole labels at the beginning: *.example.com")
	}
	r.host = name
	if isSuffix {
		r.host = "." + name
	}
	return nil
}

func (r Rule) matches(t Target) bool {
	if len(r.ports) > 0 && !slices.ContainsFunc(r.ports, func(p portRange) bool { return p.first <= t.Port && t.Port <= p.last }) {
		return false
	}
	return r.matchesHost(t.Host)
}

func (r Rule) matchesHost(host string) bool {
	if r.network.IsValid() {
		addr, err := netip.ParseAddr(host)
		return err == nil && r.network.Contains(addr)
	}
	if strings.HasPrefix(r.host, ".") {
		return strings.HasSuffix(host, r.host)
	}
	return r.host == "" || r.host == host
}

// Host brings a host into its one form: a name in lower case and A-labels (RFC
// 5891) without its last dot, or an address as netip writes it.
func Host(text string) (string, error) {
	if addr, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		if addr.Zone() != "" {
			return "", fmt.Errorf("address %q has a zone", text)
		}
		return addr.Unmap().String(), nil
	}
	name := strings.TrimSuffix(text, ".")
	if !isASCII(name) {
		ascii, err := idna.Lookup.ToASCII(name)
		if err != nil {
			return "", fmt.Errorf("host %q: %w", text, err)
		}
		name = ascii
	}
	name = strings.ToLower(name)
	if err := checkName(name); err != nil {
		return "", fmt.Errorf("host %q: %w", text, err)
	}
	return name, nil
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= 0x80 }) < 0
}

// checkName takes the names that are in use, underscores included, and not
// such that some resolvers would read as an address ("127.1", "0x7f.1").
func checkName(name string) error {
	if name == "" {
		return fmt.Errorf("it is empty")
	}
	if len(name) > 253 {
		return fmt.Errorf("it is longer than 253 characters")
	}
	last := name[strings.LastIndexByte(name, '.')+1:]
	if last != "" && last[0] >= '0' && last[0] <= '9' {
		return fmt.Errorf("it ends with a number and is no address in its usual form")
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return fmt.Errorf("a label must have 1 to 63 characters")
		}
		for i := range len(label) {
			c := label[i]
			if c != '-' && c != '_' && c != '*' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
				return fmt.Errorf("%q may not be in a name", c)
			}
		}
	}
	return nil
}
