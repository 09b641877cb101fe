package mitm

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"agentops/mitm/policy"
)

// Pin says where a name is dialled, whatever DNS says of it. It is the one way
// for a name to lead to an address that is not public.
type Pin struct {
	text string
	host string         // exact; "." before it: a suffix; empty: every name
	to   netip.AddrPort // port 0: the port that the run dialled
}

// String is the pin as it was written.
func (p Pin) String() string { return p.text }

// ParsePin reads NAME=IP[:PORT]. NAME is a host, "*.suffix", an address, or "*".
func ParsePin(text string) (Pin, error) {
	name, to, ok := strings.Cut(text, "=")
	if !ok {
		return Pin{}, fmt.Errorf("pin %q is not NAME=IP[:PORT]", text)
	}
	pin := Pin{text: text}
	if addr, err := netip.ParseAddr(strings.Trim(to, "[]")); err == nil {
		pin.to = netip.AddrPortFrom(addr, 0)
	} else if pin.to, err = netip.ParseAddrPort(to); err != nil || pin.to.Port() == 0 {
		return Pin{}, fmt.Errorf("pin %q: %q is not IP or IP:PORT", text, to)
	}
	if name == "*" {
		return pin, nil
	}
	suffix, isSuffix := strings.CutPrefix(name, "*.")
	host, err := policy.Host(suffix)
	if strings.Contains(suffix, "*") {
		err = fmt.Errorf("a * stands only for whole labels at the beginning: *.example.com")
	}
	if err != nil {
		return Pin{}, fmt.Errorf("pin %q: %w", text, err)
	}
	pin.host = host
	if isSuffix {
		pin.host = "." + host
	}
	return pin, nil
}

func (p Pin) matches(host string) bool {
	if strings.HasPrefix(p.host, ".") {
		return strings.HasSuffix(host, p.host)
	}
	return p.host == "" || p.host == host
}

// beats orders two pins that match the same host: an exact one first, then the
// longer suffix, then "*". Of equals the later one wins, as with flags.
func (p Pin) beats(other Pin) bool {
	exact := func(p Pin) bool { return p.host != "" && !strings.HasPrefix(p.host, ".") }
	if exact(p) != exact(other) {
		return exact(p)
	}
	return len(p.host) >= len(other.host)
}

// Dialer is the only thing in the proxy that connects to anywhere. It dials names
// by looking them up itself, and no address that is not public unless a pin or
// a rule names it.
type Dialer struct {
	pins     []Pin
	policy   *policy.Policy
	resolver *net.Resolver
	timeout  time.Duration // 0: the kernel's
}

// NewDialer makes a dialer.
func NewDialer(pins []Pin, p *policy.Policy) *Dialer {
	return &Dialer{pins: pins, policy: p, resolver: net.DefaultResolver}
}

// within returns the dialer with a bound on how long a call of Dial may take.
func (d *Dialer) within(timeout time.Duration) *Dialer {
	bounded := *d
	bounded.timeout = timeout
	return &bounded
}

func (d *Dialer) pin(host string) (Pin, bool) {
	var best Pin
	found := false
	for _, pin := range d.pins {
		if pin.matches(host) && (!found || pin.beats(best)) {
			best, found = pin, true
		}
	}
	return best, found
}

// Dial connects to a host, in the form of policy.Host, and port. A refused address
// is a *GuardError.
func (d *Dialer) Dial(ctx context.Context, host string, port uint16) (net.Conn, error) {
	return d.dial(ctx, policy.TCP, host, port)
}

// DialUDP makes a socket for datagrams to and from a host and port alone, likewise.
func (d *Dialer) DialUDP(ctx context.Context, host string, port uint16) (*net.UDPConn, error) {
	conn, err := d.dial(ctx, policy.UDP, host, port)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

func (d *Dialer) dial(ctx context.Context, protocol policy.Protocol, host string, port uint16) (net.Conn, error) {
	dialer := net.Dialer{Timeout: d.timeout, Resolver: d.resolver}
	if to, ok := d.pinned(host, port); ok {
		if err := checkDenied(d.policy.DecidePinned(protocol, to), to.Addr()); err != nil {
			return nil, err
		}
		return dialer.DialContext(ctx, string(protocol), to.String())
	}
	dialer.Control = d.guard(protocol, host)
	target := host
	if _, err := netip.ParseAddr(host); err != nil {
		target = host + "." // no search list of the host's
	}
	return dialer.DialContext(ctx, string(protocol), joinAddress(target, port))
}

// pinned is where a pin leads.
func (d *Dialer) pinned(host string, port uint16) (netip.AddrPort, bool) {
	pin, ok := d.pin(host)
	if pin.to.Port() == 0 {
		return netip.AddrPortFrom(pin.to.Addr(), port), ok
	}
	return pin.to, ok
}

// Check says what can be said of a call of Dial, or of DialUDP, without a lookup: a
// *GuardError for an address that it would refuse.
func (d *Dialer) Check(protocol policy.Protocol, host string, port uint16) error {
	if protocol != policy.UDP {
		protocol = policy.TCP
	}
	if to, ok := d.pinned(host, port); ok {
		return checkDenied(d.policy.DecidePinned(protocol, to), to.Addr())
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return d.guard(protocol, host)(string(protocol), netip.AddrPortFrom(addr, port).String(), nil)
	}
	return nil
}

// guard checks the address that is about to be dialled, after every lookup.
func (d *Dialer) guard(protocol policy.Protocol, host string) func(network, address string, _ syscall.RawConn) error {
	_, err := netip.ParseAddr(host)
	byAddress := err == nil
	return func(_, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("check address %q: %w", address, err)
		}
		if err := checkDenied(d.policy.DecideAddress(protocol, to), to.Addr()); err != nil {
			return err
		}
		if byAddress && d.policy.AllowsAddress(protocol, to) {
			return nil
		}
		if err := checkPublic(to.Addr()); err != nil {
			return err
		}
		return checkForeign(to.Addr().Unmap())
	}
}

// Exists looks a name up as Dial would: nil if it has an address or is pinned.
func (d *Dialer) Exists(ctx context.Context, name string) error {
	if _, ok := d.pin(name); ok {
		return nil
	}
	_, err := d.resolver.LookupNetIP(ctx, "ip", name+".")
	return err
}
