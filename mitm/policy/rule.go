package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Rule names targets: a host, every host below a suffix ("*.example.com", which
// is not example.com itself), every host ("*"), an address or a network; with or
// without ports; and of these all, or a protocol, or some requests. The zero
// Rule names nothing.
type Rule struct {
	text     string
	source   string
	protocol Protocol // empty, TCP or UDP
	any      bool
	host     string       // exact; "." before it: a suffix
	network  netip.Prefix // valid: an address or a network
	ports    []portRange  // empty: all
	methods  []string     // empty: all
	paths    []glob       // empty: all
}

type portRange struct{ first, last uint16 }

// String is the rule as it was written.
func (r Rule) String() string { return r.text }

// Source is where the rule stands, as From was told.
func (r Rule) Source() string { return r.source }

// From returns the rule with where it stands: a file, a flag.
func (r Rule) From(source string) Rule {
	r.source = source
	return r
}

// RuleSpec is a rule in parts.
type RuleSpec struct {
	Host    string   `yaml:"host"`  // with ports behind it, when there are no Ports
	Ports   []string `yaml:"ports"` // numbers and ranges
	Methods []string `yaml:"methods"`
	Paths   []string `yaml:"paths"` // globs
	TCP     string   `yaml:"tcp"`   // HOST[:PORTS], in the place of all others
	UDP     string   `yaml:"udp"`   // likewise
}

// Rule makes a rule of the parts, as ParseRule does of their text.
func (s RuleSpec) Rule() (Rule, error) {
	for _, part := range slices.Concat(s.Ports, s.Methods, s.Paths, []string{s.Host, s.TCP, s.UDP}) {
		if strings.ContainsFunc(part, unicode.IsSpace) {
			return Rule{}, fmt.Errorf("rule with %q: a blank may not be in it; in a path, write %%20", part)
		}
	}
	host := s.Host
	switch {
	case s.TCP != "" || s.UDP != "":
		if s.TCP != "" && s.UDP != "" || s.Host != "" || s.Ports != nil || s.Methods != nil || s.Paths != nil {
			return Rule{}, errors.New("rule with tcp or udp: nothing else may be in it")
		}
		host = "tcp:" + s.TCP
		if s.UDP != "" {
			host = "udp:" + s.UDP
		}
	case s.Ports != nil:
		if strings.Count(host, ":") > 1 && host[0] != '[' {
			host = "[" + host + "]"
		}
		host += ":" + strings.Join(s.Ports, ",")
	}
	if host == "" {
		return Rule{}, errors.New("rule in parts: there is no host in it")
	}
	text := []string{host}
	if s.Methods != nil {
		text = []string{strings.Join(s.Methods, ","), host}
	}
	if s.Methods != nil && len(s.Methods) == 0 || s.Paths != nil && len(s.Paths) == 0 {
		return Rule{}, fmt.Errorf("rule %q: a list of methods or paths is empty; leave it out to name all", host)
	}
	for _, path := range s.Paths {
		if !strings.HasPrefix(path, "/") {
			return Rule{}, fmt.Errorf("rule %q: path %q does not begin with a slash", host, path)
		}
		text = append(text, path)
	}
	return ParseRule(strings.Join(text, " "))
}

// UnmarshalYAML reads a rule as ParseRule does, or in parts.
func (r *Rule) UnmarshalYAML(unmarshal func(any) error) (err error) {
	var text string
	if unmarshal(&text) == nil {
		*r, err = ParseRule(text)
		return err
	}
	var spec RuleSpec
	if err = unmarshal(&spec); err == nil {
		*r, err = spec.Rule()
	}
	return err
}

// ParseRule reads [METHODS] HOST[:PORTS][PATHS] or PROTOCOL:HOST[:PORTS]: methods
// and ports have commas between them, paths blanks. "example.com",
// "*.example.com:80,8000-8999", "[2001:db8::/32]:443", "tcp:10.0.0.5:5432",
// "GET,HEAD example.com/api/** /v1/*/items".
func ParseRule(text string) (Rule, error) {
	rule := Rule{text: text}
	if err := rule.parse(text); err != nil {
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

func (r *Rule) parse(text string) error {
	head, paths := strings.Fields(text), []string(nil)
	if i := slices.IndexFunc(head, func(f string) bool { return strings.HasPrefix(f, "/") }); i >= 0 {
		head, paths = head[:i], head[i:]
	}
	var methods, target string
	switch len(head) {
	case 1:
		target = head[0]
	case 2:
		methods, target = head[0], head[1]
	case 0:
		return errors.New("it is empty: there is no host")
	default:
		return errors.New("it is [METHODS] HOST[:PORTS][/PATH...]")
	}
	if strings.Contains(target, "://") {
		return errors.New("it is a host with ports and paths, without scheme")
	}
	for _, protocol := range []Protocol{TCP, UDP} {
		if rest, ok := strings.CutPrefix(target, string(protocol)+":"); ok {
			r.protocol, target = protocol, rest
			break
		}
	}
	if i := pathBegin(target); i >= 0 {
		target, paths = target[:i], append([]string{target[i:]}, paths...)
	}
	if r.protocol != "" && (methods != "" || paths != nil) {
		return fmt.Errorf("methods and paths are of HTTP: leave %s: out", r.protocol)
	}
	host, ports, err := splitPorts(target)
	if err != nil {
		return err
	}
	if r.ports, err = parsePorts(ports); err != nil {
		return err
	}
	if err := r.parseHost(host); err != nil {
		return err
	}
	return r.parseRequests(methods, paths)
}

// pathBegin is where in HOST[:PORTS][/PATH] the path begins, -1: nowhere. A number
// behind an address is the length of a network.
func pathBegin(target string) int {
	from := 0
	if strings.HasPrefix(target, "[") {
		from = max(strings.Index(target, "]"), 0)
	}
	slash := strings.Index(target[from:], "/")
	if slash < 0 {
		return -1
	}
	slash += from
	if _, err := netip.ParseAddr(target[:slash]); err == nil {
		rest := strings.TrimLeft(target[slash+1:], "0123456789")
		if rest == "" || rest[0] == ':' {
			return -1
		}
	}
	return slash
}

func (r *Rule) parseRequests(methods string, paths []string) error {
	if methods != "" {
		r.methods = strings.Split(methods, ",")
	}
	for _, method := range r.methods {
		if method == "" || strings.Trim(method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-_") != "" {
			return fmt.Errorf("%q is no method; they are in capitals: GET,HEAD", method)
		}
	}
	for _, path := range paths {
		g, err := parseGlob(path)
		if err != nil {
			return fmt.Errorf("path %q: %w", path, err)
		}
		r.paths = append(r.paths, g)
	}
	return nil
}

// splitPorts takes the ports off a host. An IPv6 address or network is in
// brackets when ports follow.
func splitPorts(text string) (host, ports string, err error) {
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
		r.any = true
		return nil
	}
	if prefix, err := netip.ParsePrefix(host); err == nil {
		if prefix.Masked() != prefix {
			return fmt.Errorf("network %s has bits beyond its length; write %s", host, prefix.Masked())
		}
		if prefix.Addr().Is4In6() {
			return fmt.Errorf("network %s is one of IPv4; write it so", host)
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
	if strings.Contains(suffix, "*") {
		return fmt.Errorf("a * stands only for whole labels at the beginning: *.example.com")
	}
	name, err := Host(suffix)
	if err != nil {
		return err
	}
	r.host = name
	if isSuffix {
		r.host = "." + name
	}
	return nil
}
