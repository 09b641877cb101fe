package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"agentops/audit"
	"agentops/bpf"
	"agentops/netns"

	"golang.org/x/sys/unix"
)

// boundary is a run's network: a namespace without a way out, the host's
// listeners in it, and the redirect that leads to them.
type boundary struct {
	namespace   *netns.Namespace
	proxy       []*net.TCPListener
	resolver    []*net.UDPConn
	relays      []*netns.Datagrams // none: no datagrams are relayed
	relayed     []bpf.PortRange
	credentials *net.TCPListener
	redirect    *bpf.Redirect
	observer    *bpf.Observer
}

// newBoundary makes a namespace with the host's listeners in it, and with the
// sockets that relay datagrams if some are to be, at these ports. Until attach has
// returned there is no way out of it at all.
func newBoundary(relayed [][2]uint16) (_ *boundary, err error) {
	b := &boundary{}
	for _, ports := range relayed {
		b.relayed = append(b.relayed, bpf.PortRange{First: ports[0], Last: ports[1]})
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.namespace, err = netns.New(); err != nil {
		return nil, err
	}
	hosts := []netip.Addr{netns.Host4}
	if b.namespace.IPv6() {
		hosts = append(hosts, netns.Host6)
	}
	for _, host := range hosts {
		family := "4"
		if host.Is6() {
			family = "6"
		}
		listener, err := b.namespace.Listen("tcp"+family, netip.AddrPortFrom(host, 0))
		if err != nil {
			return nil, fmt.Errorf("open the proxy's listener: %w", err)
		}
		b.proxy = append(b.proxy, listener)
		conn, err := b.namespace.ListenPacket("udp"+family, netip.AddrPortFrom(host, 53))
		if err != nil {
			return nil, fmt.Errorf("open the resolver's socket: %w", err)
		}
		b.resolver = append(b.resolver, conn)
		if len(b.relayed) == 0 {
			continue
		}
		relay, err := b.namespace.ListenDatagrams(host)
		if err != nil {
			return nil, fmt.Errorf("open the relays' socket: %w", err)
		}
		b.relays = append(b.relays, relay)
	}
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if b.credentials, err = b.namespace.Listen("tcp4", netip.AddrPortFrom(loopback, 0)); err != nil {
		return nil, fmt.Errorf("open the credential server's listener: %w", err)
	}
	return b, nil
}

// attached returns an error when the boundary's programs are no longer in place.
func (b *boundary) attached() error {
	return errors.Join(b.redirect.Attached(), b.observer.Attached())
}

// owner names the process that has made a connection.
func (b *boundary) owner(source, destination netip.AddrPort) *audit.Process {
	process, ok := b.observer.TCPOwner(source, destination)
	return recorded(process, ok)
}

// sender names the process that has sent a datagram.
func (b *boundary) sender(source, destination netip.AddrPort) *audit.Process {
	process, ok := b.observer.UDPOwner(source, destination)
	return recorded(process, ok)
}

func recorded(p bpf.Process, ok bool) *audit.Process {
	if !ok {
		return nil
	}
	return &audit.Process{PID: p.PID, Parent: p.Parent, UID: p.UID, Comm: p.Comm, Exe: p.Exe}
}

// attach redirects the namespace to its listeners, proves that this holds, and
// observes the run's cgroup, whose folder comes when there is one.
func (b *boundary) attach(layout bpf.Layout, cgroup <-chan string) (err error) {
	options := bpf.RedirectOptions{
		NetNS: b.namespace.File(), Own4: netns.Own4, Own6: netns.Own6,
		TCP4: b.proxy[0], DNS4: b.resolver[0], Relayed: b.relayed,
	}
	if len(b.proxy) == 2 {
		options.TCP6, options.DNS6 = b.proxy[1], b.resolver[1]
	}
	if len(b.relays) > 0 {
		options.UDP4 = b.relays[0]
	}
	if len(b.relays) == 2 {
		options.UDP6 = b.relays[1]
	}
	if b.redirect, err = bpf.AttachRedirect(options); err != nil {
		return err
	}
	if err := b.probe(); err != nil {
		return err
	}
	b.observer, err = bpf.LoadObserver(bpf.ObserverOptions{
		Redirect: b.redirect, Own4: netns.Own4, Own6: netns.Own6, Layout: layout,
		Credentials: uint16(b.credentials.Addr().(*net.TCPAddr).Port),
	})
	if err != nil {
		return err
	}
	if folder, ok := <-cgroup; ok { // else there is no container, and its error
		return b.observer.Attach(folder)
	}
	return nil
}

const probeTimeout = 2 * time.Second

// probe makes a connection and a datagram to anywhere, from inside, and takes them
// at the other end. Nobody else is in the namespace yet.
func (b *boundary) probe() error {
	anywhere := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	for i, listener := range b.proxy {
		target := netip.AddrPortFrom(anywhere[i], 9)
		if err := b.probeTCP(listener, target); err != nil {
			return fmt.Errorf("the redirect does not hold: a connection to %s: %w", target, err)
		}
		target = netip.AddrPortFrom(anywhere[i], 53)
		if err := b.probeUDP(b.resolver[i], target); err != nil {
			return fmt.Errorf("the redirect does not hold: a datagram to %s: %w", target, err)
		}
	}
	return nil
}

func (b *boundary) probeTCP(listener *net.TCPListener, target netip.AddrPort) error {
	client, err := b.dial("tcp", target)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := listener.SetDeadline(time.Now().Add(probeTimeout)); err != nil {
		return err
	}
	accepted, err := listener.Accept()
	if err != nil {
		return err
	}
	defer accepted.Close()
	if accepted.LocalAddr().String() != target.String() || accepted.RemoteAddr().String() != client.LocalAddr().String() {
		return fmt.Errorf("another one arrived, from %s to %s", accepted.RemoteAddr(), accepted.LocalAddr())
	}
	return listener.SetDeadline(time.Time{})
}

func (b *boundary) probeUDP(conn *net.UDPConn, target netip.AddrPort) error {
	client, err := b.dial("udp", target)
	if err != nil {
		return err
	}
	defer client.Close()
	if _, err := client.Write([]byte("probe")); err != nil {
		return err
	}
	if err := conn.SetReadDeadline(time.Now().Add(probeTimeout)); err != nil {
		return err
	}
	buf := make([]byte, 16)
	if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "probe" {
		return fmt.Errorf("read %q: %w", buf[:n], err)
	}
	return conn.SetReadDeadline(time.Time{})
}

func (b *boundary) dial(network string, target netip.AddrPort) (conn net.Conn, err error) {
	err = b.namespace.Do(func() error {
		dialer := net.Dialer{Timeout: probeTimeout}
		conn, err = dialer.Dial(network, target.String())
		return err
	})
	return conn, err
}

// dropped is how many datagrams found no room in the sockets of the resolver and of
// the relays.
func (b *boundary) dropped() (resolver, relays uint64, err error) {
	for _, conn := range b.resolver {
		if err := drops(conn, &resolver); err != nil {
			return 0, 0, fmt.Errorf("read the drops of the resolver's socket: %w", err)
		}
	}
	for _, conn := range b.relays {
		if err := drops(conn, &relays); err != nil {
			return 0, 0, fmt.Errorf("read the drops of the relays' socket: %w", err)
		}
	}
	return resolver, relays, nil
}

// drops adds a socket's SK_MEMINFO_DROPS (linux/sock_diag.h).
func drops(conn syscall.Conn, sum *uint64) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var info [9]uint32
	size := uint32(unsafe.Sizeof(info))
	var errno syscall.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	})
	if err == nil && errno != 0 {
		err = os.NewSyscallError("getsockopt SO_MEMINFO", errno)
	}
	*sum += uint64(info[8])
	return err
}

// close takes the boundary down. What is still in the namespace is left without
// any network.
func (b *boundary) close() error {
	var errs []error
	if b.observer != nil {
		errs = append(errs, b.observer.Close())
	}
	if b.redirect != nil {
		errs = append(errs, b.redirect.Close())
	}
	for _, listener := range b.proxy {
		errs = append(errs, closeOnce(listener))
	}
	for _, conn := range b.resolver {
		errs = append(errs, closeOnce(conn))
	}
	for _, relay := range b.relays {
		errs = append(errs, closeOnce(relay))
	}
	if b.credentials != nil {
		errs = append(errs, closeOnce(b.credentials))
	}
	if b.namespace != nil {
		errs = append(errs, b.namespace.Close())
	}
	return errors.Join(errs...)
}

// closeOnce closes a socket that who served it may have closed.
func closeOnce(c interface {
	syscall.Conn
	Close() error
}) error {
	if err := c.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
