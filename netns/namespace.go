// Package netns makes network namespaces that have no way out: a loopback
// interface on which every address of the internet is local.
package netns

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The first thread must never be one that Do has moved: /proc/self and the
// process's other users of the first thread would follow it.
func init() { runtime.LockOSThread() }

// The addresses of a run itself, on its loopback interface. IPv4's is from
// the range for benchmarks (RFC 2544), IPv6's is a unique local one (RFC 4193).
var (
	Own4 = netip.MustParseAddr("198.19.255.254")
	Own6 = netip.MustParseAddr("fdfe:a6e2:6f70::1")
)

// The addresses for the host's listeners inside the namespace. Unlike the run's
// own they are redirected, so that the listeners are not to be had but through
// the redirect.
var (
	Host4 = netip.MustParseAddr("198.19.255.253")
	Host6 = netip.MustParseAddr("fdfe:a6e2:6f70::53")
)

// Nameserver is the address to name as a run's DNS server. It is on no interface:
// to one that is, the kernel sends from that address itself, which the redirect does
// not take for the run's.
var Nameserver = netip.MustParseAddr("198.19.255.252")

// Namespace is a network namespace. It lives as long as this value, or a
// process in it.
type Namespace struct {
	file  *os.File
	ipv6  bool
	calls chan func() // for the thread that Do uses; nil: closed
}

// New makes a namespace with lo only, every address routed to it.
func New() (*Namespace, error) { return create((*Namespace).setUp) }

// Empty makes a namespace as the kernel does: lo is down and nothing is routed.
func Empty() (*Namespace, error) { return create(func(*Namespace) error { return nil }) }

// create makes a namespace and calls setUp on a thread in it.
func create(setUp func(*Namespace) error) (*Namespace, error) {
	ns := &Namespace{ipv6: hasIPv6(), calls: make(chan func())}
	go inhabit(ns.calls)
	err := ns.Do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare a network namespace: %w", err)
		}
		file, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return fmt.Errorf("open the network namespace: %w", err)
		}
		ns.file = file
		return setUp(ns)
	})
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return ns, nil
}

// inhabit makes calls on a thread of its own, which ends with them, so that whatever
// they change of it cannot reach another goroutine.
func inhabit(calls <-chan func()) {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	for call := range calls {
		call()
	}
}

// IPv6 reports whether the namespace has IPv6; it lacks it where the host does.
func (ns *Namespace) IPv6() bool { return ns.ipv6 }

// File is the namespace's descriptor, owned by the Namespace.
func (ns *Namespace) File() *os.File { return ns.file }

// Path names the namespace for as long as this process holds it.
func (ns *Namespace) Path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.file.Fd())
}

// Do calls f on the one thread inside the namespace, and must not be called by it.
// Goroutines that f starts run outside; sockets that f makes belong to the namespace
// for life.
func (ns *Namespace) Do(f func() error) error {
	if ns.calls == nil {
		return errors.New("enter the network namespace: it is closed")
	}
	done := make(chan error, 1)
	ns.calls <- func() { done <- f() }
	return <-done
}

// Listen opens a TCP listener inside the namespace; network is "tcp4" or
// "tcp6".
func (ns *Namespace) Listen(network string, addr netip.AddrPort) (*net.TCPListener, error) {
	var listener net.Listener
	err := ns.Do(func() (err error) {
		config := net.ListenConfig{KeepAlive: -1, Control: keepAlive}
		config.SetMultipathTCP(false) // which a SOCKMAP refuses
		listener, err = config.Listen(context.Background(), network, addr.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	return listener.(*net.TCPListener), nil
}

// keepAlive has a listener hand on to its connections what package net would set on
// each of them, by a call for each option.
func keepAlive(_, _ string, raw syscall.RawConn) error {
	var err error
	ctlErr := raw.Control(func(fd uintptr) {
		err = errors.Join(
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9),
		)
	})
	return os.NewSyscallError("setsockopt", errors.Join(ctlErr, err))
}

// ListenPacket opens a UDP socket inside the namespace; network is "udp4" or
// "udp6". It may send from any address.
func (ns *Namespace) ListenPacket(network string, addr netip.AddrPort) (*net.UDPConn, error) {
	conn, err := ns.listenPacket(network, addr.String())
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

// listenPacket opens a socket that may send from any address.
func (ns *Namespace) listenPacket(network, addr string) (conn net.PacketConn, err error) {
	err = ns.Do(func() error {
		config := net.ListenConfig{Control: setOptions}
		conn, err = config.ListenPacket(context.Background(), network, addr)
		return err
	})
	return conn, err
}

// setOptions lets a socket of IPv6 name source addresses that no interface has: an
// answer comes from the address that was asked. IPv4 takes any local address
// anyway. A datagram of IPv6 may lack a checksum: as it was counted when it was
// sent, it must arrive.
func setOptions(network, _ string, raw syscall.RawConn) error {
	if !strings.HasSuffix(network, "6") {
		return nil
	}
	var err error
	if ctlErr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1)
		if err == nil && network == "udp6" {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_NO_CHECK6_RX, 1)
		}
	}); ctlErr != nil {
		return ctlErr
	}
	return os.NewSyscallError("setsockopt", err)
}

// Close lets go of the namespace. It may be called again.
func (ns *Namespace) Close() error {
	if ns.calls == nil {
		return nil
	}
	close(ns.calls)
	ns.calls = nil
	if ns.file == nil {
		return nil // it was not made
	}
	return ns.file.Close()
}

// setUp configures the namespace of the current thread.
func (ns *Namespace) setUp() error {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open a netlink socket: %w", err)
	}
	defer handle.Close()
	lo, err := handle.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := handle.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	addrs := []netip.Addr{Own4, Host4}
	routes := []*netlink.Route{
		{Dst: prefix(netip.IPv4Unspecified(), 0), Scope: netlink.SCOPE_HOST, Src: Own4.AsSlice()},
	}
	sysctls := [][2]string{
		// Every address is local, so every ping would be answered by ourselves.
		{"net/ipv4/icmp_echo_ignore_all", "1"},
		{"net/ipv4/ip_local_port_range", "1024 65535"},
	}
	if ns.ipv6 {
		addrs = append(addrs, Own6, Host6)
		routes = append(routes, &netlink.Route{Dst: prefix(netip.IPv6Unspecified(), 0)}) // the kernel takes no src here
		sysctls = append(sysctls, [2]string{"net/ipv6/icmp/echo_ignore_all", "1"})
		if err := setSysctl("net/ipv6/conf/lo/disable_ipv6", "0"); err != nil {
			return err
		}
	}
	for _, addr := range addrs {
		// A prefix route of IPv6 on lo rejects, and would be there before the
		// kernel, in its own time, has added the one by which it is local.
		add := &netlink.Addr{IPNet: prefix(addr, addr.BitLen()), Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE}
		if addr == Host6 {
			// Deprecated (RFC 4862): never chosen as a source, which is Own6.
			add.ValidLft = math.MaxUint32
		}
		if err := handle.AddrAdd(lo, add); err != nil {
			return fmt.Errorf("add %s to lo: %w", addr, err)
		}
	}
	for _, route := range routes {
		route.LinkIndex = lo.Attrs().Index
		route.Type = unix.RTN_LOCAL
		route.Table = unix.RT_TABLE_MAIN
		if err := handle.RouteAdd(route); err != nil {
			return fmt.Errorf("add route local %s dev lo: %w", route.Dst, err)
		}
	}
	for _, sysctl := range sysctls {
		if err := setSysctl(sysctl[0], sysctl[1]); err != nil {
			return err
		}
	}
	// Nothing is lost on lo and nothing queues there: what estimates a path, or paces what
	// is sent by timers, as the host's own may, only costs. This one is in every kernel,
	// and is for IPv6 as well. Where tcp_allowed_congestion_control lacks it, it may not
	// be had, and the host's stays.
	if err := setSysctl("net/ipv4/tcp_congestion_control", "reno"); err != nil && !errors.Is(err, unix.EPERM) {
		return err
	}
	return nil
}

func prefix(addr netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, addr.BitLen())}
}

// setSysctl sets a network setting of the current thread's namespace: below
// /proc/sys/net every thread sees its own.
func setSysctl(name, value string) error {
	if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl %s: %w", name, err)
	}
	return nil
}

// hasIPv6 is false where the kernel was started with ipv6.disable=1.
func hasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}
