package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Datagrams is a UDP socket inside a namespace that may be given what was sent to
// any address and port, and answers from there. It binds none of those: programs in
// the namespace may use the same ports. Its methods may be called at once, Receive
// by one caller.
type Datagrams struct {
	*net.UDPConn
	udp  *net.IPConn // sends answers
	icmp *net.IPConn // sends refusals
	ctl  []byte      // of Receive
}

// ListenDatagrams opens one at an address, which is not used but to tell it apart.
func (ns *Namespace) ListenDatagrams(addr netip.Addr) (_ *Datagrams, err error) {
	d := &Datagrams{ctl: make([]byte, unix.CmsgSpace(unix.SizeofSockaddrInet6))}
	network, answers, refusals := "udp4", "ip4:17", "ip4:1" // IANA's numbers of UDP and ICMP
	if addr.Is6() {
		network, answers, refusals = "udp6", "ip6:17", "ip6:58"
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if d.UDPConn, err = ns.ListenPacket(network, netip.AddrPortFrom(addr, 0)); err != nil {
		return nil, err
	}
	if err := wantDestination(d.UDPConn, addr.Is6()); err != nil {
		return nil, fmt.Errorf("ask for the destination of datagrams: %w", err)
	}
	// Bound, so that they are given no copies of others' packets.
	if d.udp, err = ns.listenRaw(answers, addr); err != nil {
		return nil, err
	}
	if addr.Is6() {
		const checksum = 6 // where it is in a UDP header
		if err := ipv6.NewPacketConn(d.udp).SetChecksum(true, checksum); err != nil {
			return nil, fmt.Errorf("ask for checksums of datagrams: %w", err)
		}
	}
	if d.icmp, err = ns.listenRaw(refusals, addr); err != nil {
		return nil, err
	}
	return d, nil
}

func (ns *Namespace) listenRaw(network string, addr netip.Addr) (*net.IPConn, error) {
	conn, err := ns.listenPacket(network, addr.String())
	if err != nil {
		return nil, err
	}
	return conn.(*net.IPConn), nil
}

func wantDestination(conn syscall.Conn, v6 bool) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	level, option := unix.SOL_IP, unix.IP_RECVORIGDSTADDR
	if v6 {
		level, option = unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR
	}
	ctlErr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) })
	return errors.Join(ctlErr, err)
}

// Receive waits for a datagram and tells from and to where it was sent.
func (d *Datagrams) Receive(buf []byte) (n int, source, destination netip.AddrPort, err error) {
	n, ctl, _, source, err := d.ReadMsgUDPAddrPort(buf, d.ctl)
	if err != nil {
		return 0, source, destination, err
	}
	messages, err := unix.ParseSocketControlMessage(d.ctl[:ctl])
	if err != nil || len(messages) != 1 {
		return 0, source, destination, fmt.Errorf("read the destination of a datagram from %d messages: %w", len(messages), err)
	}
	to, err := unix.ParseOrigDstAddr(&messages[0])
	if err != nil {
		return 0, source, destination, fmt.Errorf("read the destination of a datagram: %w", err)
	}
	switch to := to.(type) {
	case *unix.SockaddrInet4:
		destination = netip.AddrPortFrom(netip.AddrFrom4(to.Addr), uint16(to.Port))
	case *unix.SockaddrInet6:
		destination = netip.AddrPortFrom(netip.AddrFrom16(to.Addr), uint16(to.Port))
	}
	return n, source, destination, nil
}

// Answer sends a datagram to source as destination's.
func (d *Datagrams) Answer(payload []byte, source, destination netip.AddrPort) error {
	// Made by hand, since to send from a port it would have to be bound, which a
	// program with that port open on all addresses does not let be. In IPv4, the
	// checksum may be left out.
	packet := append(udpHeader(destination, source, len(payload)), payload...)
	return send(d.udp, packet, source.Addr(), destination.Addr())
}

// Refuse lets source know that nobody is at destination, as the kernel does of its
// own: by ICMP port unreachable.
func (d *Datagrams) Refuse(source, destination netip.AddrPort) error {
	m := icmp.Message{Type: ipv4.ICMPTypeDestinationUnreachable, Code: 3}
	var sent []byte // the beginning of what is refused
	if source.Addr().Is4() {
		header := ipv4.Header{
			Version: ipv4.Version, Len: ipv4.HeaderLen, TotalLen: ipv4.HeaderLen + udpHeaderLen,
			TTL: 64, Protocol: unix.IPPROTO_UDP, Src: source.Addr().AsSlice(), Dst: destination.Addr().AsSlice(),
		}
		var err error
		if sent, err = header.Marshal(); err != nil {
			return err
		}
	} else {
		m.Type, m.Code = ipv6.ICMPTypeDestinationUnreachable, 4
		sent = []byte{ipv6.Version << 4, 0, 0, 0, 0, udpHeaderLen, unix.IPPROTO_UDP, 64}
		sent = append(append(sent, source.Addr().AsSlice()...), destination.Addr().AsSlice()...)
	}
	m.Body = &icmp.DstUnreach{Data: append(sent, udpHeader(source, destination, 0)...)}
	packet, err := m.Marshal(nil)
	if err != nil {
		return err
	}
	return send(d.icmp, packet, source.Addr(), destination.Addr())
}

const udpHeaderLen = 8

func udpHeader(source, destination netip.AddrPort, length int) []byte {
	length += udpHeaderLen
	return append(make([]byte, 0, length), byte(source.Port()>>8), byte(source.Port()),
		byte(destination.Port()>>8), byte(destination.Port()), byte(length>>8), byte(length), 0, 0)
}

// loopback is the index of lo, which link-local addresses want; it is the first of
// every namespace.
const loopback = 1

// send sends a packet to an address as from's.
func send(conn *net.IPConn, packet []byte, to, from netip.Addr) error {
	source := (&ipv4.ControlMessage{Src: from.AsSlice()}).Marshal()
	if from.Is6() {
		source = (&ipv6.ControlMessage{Src: from.AsSlice(), IfIndex: loopback}).Marshal()
	}
	_, _, err := conn.WriteMsgIP(packet, source, &net.IPAddr{IP: to.AsSlice()})
	return err
}

// Close closes the sockets.
func (d *Datagrams) Close() error {
	var errs []error
	if d.UDPConn != nil {
		errs = append(errs, d.UDPConn.Close())
	}
	for _, conn := range []*net.IPConn{d.udp, d.icmp} {
		if conn != nil {
			errs = append(errs, conn.Close())
		}
	}
	return errors.Join(errs...)
}
