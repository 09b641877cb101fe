package resolver

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
)

// The synthetic addresses: 198.18.0.0/15 (RFC 2544) less its last 256, which the
// run itself uses, and the same numbers below an IPv6 prefix (RFC 4193).
var (
	synthetic4 = netip.MustParsePrefix("198.18.0.0/15")
	synthetic6 = netip.MustParsePrefix("fdfe:a6e2:6f70:1::/96")
)

const (
	firstName = 1                       // 198.18.0.0 stands for no name
	maxNames  = 1<<17 - 256 - firstName // in the life of a run
)

// ErrFull is returned when a run has used up its synthetic addresses.
var ErrFull = errors.New("all synthetic addresses are in use")

// Names gives every name of a run an address of its own, which it keeps. It is
// safe for concurrent use.
type Names struct {
	mu      sync.RWMutex
	numbers map[string]uint32
	names   []string // by number less firstName
}

// NewNames makes an empty table.
func NewNames() *Names {
	return &Names{numbers: make(map[string]uint32)}
}

// Known reports whether a name has an address.
func (n *Names) Known(name string) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	_, ok := n.numbers[name]
	return ok
}

// Addresses returns a name's two addresses, which are made at the first call.
func (n *Names) Addresses(name string) (v4, v6 netip.Addr, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	number, ok := n.numbers[name]
	if !ok {
		if len(n.names) == maxNames {
			return netip.Addr{}, netip.Addr{}, ErrFull
		}
		number = uint32(len(n.names)) + firstName
		n.names = append(n.names, name)
		n.numbers[name] = number
	}
	return embed(synthetic4, number), embed(synthetic6, number), nil
}

// Name returns the name behind a synthetic address. Synthetic reports whether
// the address is one at all: such an address without a name belongs to nobody.
func (n *Names) Name(addr netip.Addr) (name string, synthetic bool) {
	addr = addr.Unmap()
	if !synthetic4.Contains(addr) && !synthetic6.Contains(addr) {
		return "", false
	}
	bytes := addr.AsSlice()
	number := binary.BigEndian.Uint32(bytes[len(bytes)-4:])
	if addr.Is4() {
		base := synthetic4.Addr().As4()
		number -= binary.BigEndian.Uint32(base[:])
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	if number < firstName || uint64(number) >= uint64(len(n.names))+firstName {
		return "", true
	}
	return n.names[number-firstName], true
}

// embed adds a number to a prefix's first address.
func embed(prefix netip.Prefix, number uint32) netip.Addr {
	bytes := prefix.Addr().AsSlice()
	last := bytes[len(bytes)-4:]
	binary.BigEndian.PutUint32(last, binary.BigEndian.Uint32(last)+number)
	addr, _ := netip.AddrFromSlice(bytes)
	return addr
}
