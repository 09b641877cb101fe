package mitm

import (
	"fmt"
	"net"
	"net/netip"

	"agentops/mitm/policy"
)

// GuardError says that an address may not be dialled.
type GuardError struct {
	Address netip.Addr
	Why     string         // "loopback", "private", ...
	Verdict policy.Verdict // of the rules about addresses, when they decided
}

func (e *GuardError) Error() string {
	return fmt.Sprintf("%s is refused: %s", e.Address, e.Why)
}

// Reason is the stable word for it.
func (e *GuardError) Reason() policy.Reason {
	if e.Verdict.Reason != "" {
		return e.Verdict.Reason
	}
	return policy.Address
}

// Hint is what would allow it to a run that wants to reach host.
func (e *GuardError) Hint(protocol policy.Protocol, host string, port uint16) string {
	prefix := ""
	if protocol == policy.UDP {
		prefix = "udp:"
	}
	switch e.Verdict.Reason {
	case policy.Denied:
		return "take the rule out"
	case policy.NotAllowed:
		return fmt.Sprintf("add %q to network.allow in %s", prefix+e.Address.String(), e.Verdict.Source)
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return "agent run --allow " + prefix + joinAddress(host, port)
	}
	return fmt.Sprintf("agent run --resolve %s=%s", host, e.Address)
}

// refusal is what the error means for a connection or a request to host.
func (e *GuardError) refusal(host string, port uint16) *refusal {
	return &refusal{reason: e.Reason(), rule: e.Verdict.Rule, source: e.Verdict.Source, detail: e.Error(), hint: e.Hint(policy.TCP, host, port)}
}

// checkDenied returns a *GuardError for an address that a rule denies, whatever
// name has led to it.
func checkDenied(v policy.Verdict, addr netip.Addr) error {
	if v.Allowed {
		return nil
	}
	why := fmt.Sprintf("no rule of %s allows the address", v.Source)
	if v.Rule != "" {
		why = fmt.Sprintf("it is denied by the rule %q", v.Rule)
		if v.Source != "" {
			why += " of " + v.Source
		}
	}
	return &GuardError{Address: addr, Why: why, Verdict: v}
}

// special are the addresses that are not of the public internet, from IANA's
// special-purpose registries, and those of the public ranges that clouds answer
// their metadata at.
var special = []struct {
	prefix netip.Prefix
	why    string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "this network"},
	{netip.MustParsePrefix("10.0.0.0/8"), "private"},
	{netip.MustParsePrefix("100.64.0.0/10"), "shared address space"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("168.63.129.16/32"), "cloud metadata"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local, cloud metadata"},
	{netip.MustParsePrefix("172.16.0.0/12"), "private"},
	{netip.MustParsePrefix("192.0.0.0/24"), "protocol assignments"},
	{netip.MustParsePrefix("192.0.2.0/24"), "documentation"},
	{netip.MustParsePrefix("192.88.99.0/24"), "6to4 relay"},
	{netip.MustParsePrefix("192.168.0.0/16"), "private"},
	{netip.MustParsePrefix("198.18.0.0/15"), "benchmarking"},
	{netip.MustParsePrefix("198.51.100.0/24"), "documentation"},
	{netip.MustParsePrefix("203.0.113.0/24"), "documentation"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved"},
	{netip.MustParsePrefix("2001::/23"), "protocol assignments"},
	{netip.MustParsePrefix("2001:db8::/32"), "documentation"},
	{netip.MustParsePrefix("3fff::/20"), "documentation"},
}

// Prefixes whose addresses carry an IPv4 address, which is what is reached.
var (
	nat64     = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052: the last 32 bits
	sixToFour = netip.MustParsePrefix("2002::/16")    // RFC 3056: the 32 bits behind
	global6   = netip.MustParsePrefix("2000::/3")     // all that is assigned for unicast
)

// checkPublic returns a *GuardError for an address that is not of the public
// internet.
func checkPublic(addr netip.Addr) error {
	reached := addr.Unmap()
	if nat64.Contains(reached) {
		bytes := reached.As16()
		reached = netip.AddrFrom4([4]byte(bytes[12:]))
	} else if sixToFour.Contains(reached) {
		bytes := reached.As16()
		reached = netip.AddrFrom4([4]byte(bytes[2:6]))
	}
	for _, s := range special {
		if s.prefix.Contains(reached) {
			return &GuardError{Address: addr, Why: s.why}
		}
	}
	if reached.Is6() && !global6.Contains(reached) {
		return &GuardError{Address: addr, Why: notGlobal(reached)}
	}
	return nil
}

func notGlobal(addr netip.Addr) string {
	switch {
	case addr.IsLoopback():
		return "loopback"
	case addr.IsLinkLocalUnicast():
		return "link-local"
	case addr.IsPrivate():
		return "private"
	case addr.IsMulticast():
		return "multicast"
	}
	return "not of the public internet"
}

// checkForeign returns a *GuardError for an address of this host.
func checkForeign(addr netip.Addr) error {
	own, err := net.InterfaceAddrs()
	if err != nil {
		return fmt.Errorf("list the host's addresses: %w", err)
	}
	for _, a := range own {
		if network, ok := a.(*net.IPNet); ok && network.IP.Equal(addr.AsSlice()) {
			return &GuardError{Address: addr, Why: "an address of the host itself"}
		}
	}
	return nil
}
