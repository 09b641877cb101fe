package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"agentops/test/escape/attempt"

	"golang.org/x/sys/unix"
)

// The outside, where nothing is listened to.
var (
	outside4 = netip.MustParseAddr("192.175.48.77")
	outside6 = netip.MustParseAddr("2620:4f:8000::77")
)

func at4(port uint16) netip.AddrPort { return netip.AddrPortFrom(outside4, port) }
func at6(port uint16) netip.AddrPort { return netip.AddrPortFrom(outside6, port) }

// needsProtocol says that the kernel has no such protocol.
func needsProtocol(number int) func(*attempt.Stage) string {
	return func(stage *attempt.Stage) string {
		if slices.Contains(stage.Kernel.Protocols, number) {
			return ""
		}
		return fmt.Sprintf("the kernel has no protocol %d", number)
	}
}

// transportProbes use every transport that is not TCP.
func transportProbes() []probe {
	const sctp, dccp, udplite, mptcp = unix.IPPROTO_SCTP, unix.IPPROTO_DCCP, unix.IPPROTO_UDPLITE, unix.IPPROTO_MPTCP
	list := []probe{
		{name: "udp", try: func(t *try) verdict { return t.datagram(at4(9999), unix.SOCK_DGRAM, 0, t.payload()) }},
		{name: "udp-quic", try: func(t *try) verdict { return t.datagram(at4(443), unix.SOCK_DGRAM, 0, quicInitial()) }},
		{name: "udp-ntp", try: func(t *try) verdict {
			return t.datagram(at4(123), unix.SOCK_DGRAM, 0, append([]byte{0x23}, make([]byte, 47)...))
		}},
		{name: "udp-wireguard", try: func(t *try) verdict {
			return t.datagram(at4(51820), unix.SOCK_DGRAM, 0, append([]byte{1, 0, 0, 0}, make([]byte, 144)...))
		}},
		{name: "udp-private", try: func(t *try) verdict {
			return t.datagram(netip.MustParseAddrPort("10.0.0.1:161"), unix.SOCK_DGRAM, 0, t.payload())
		}},
		{name: "udp-port-0", record: attempt.None, try: func(t *try) verdict {
			return t.datagram(at4(0), unix.SOCK_DGRAM, 0, t.payload())
		}},
		{name: "udp-big", try: func(t *try) verdict {
			return t.datagram(at4(9999), unix.SOCK_DGRAM, 0, append(t.payload(), make([]byte, 60000)...))
		}},
		{name: "udp-broadcast", try: func(t *try) verdict { return t.group("255.255.255.255:9999") }},
		{name: "udp-multicast", try: func(t *try) verdict { return t.group("224.0.0.251:5353") }},
		{name: "udplite", needs: needsProtocol(udplite), try: func(t *try) verdict {
			return t.datagram(at4(9999), unix.SOCK_DGRAM, udplite, t.payload())
		}},
		{name: "udplite6", needs: needsProtocol(udplite), try: func(t *try) verdict {
			return t.datagram(at6(9999), unix.SOCK_DGRAM, udplite, t.payload())
		}},
		{name: "mptcp", record: attempt.Flow, needs: needsProtocol(mptcp), try: func(t *try) verdict {
			return t.stream(at4(443), mptcp)
		}},
		{name: "mptcp6", record: attempt.Flow, needs: needsProtocol(mptcp), try: func(t *try) verdict {
			return t.stream(at6(443), mptcp)
		}},
		{name: "sctp-stream", needs: needsProtocol(sctp), try: func(t *try) verdict { return t.stream(at4(443), sctp) }},
		{name: "sctp-seqpacket", needs: needsProtocol(sctp), try: func(t *try) verdict {
			return t.datagram(at4(443), unix.SOCK_SEQPACKET, sctp, t.payload())
		}},
		{name: "dccp", needs: needsProtocol(dccp), try: func(t *try) verdict { return t.dccp() }},
		{name: "ping-socket", try: func(t *try) verdict {
			return t.datagram(at4(0), unix.SOCK_DGRAM, unix.IPPROTO_ICMP, echo(8, t.name))
		}},
		{name: "ping-socket6", try: func(t *try) verdict {
			return t.datagram(at6(0), unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6, echo(128, t.name))
		}},
		{name: "raw-icmp", try: func(t *try) verdict {
			return t.datagram(at4(0), unix.SOCK_RAW, unix.IPPROTO_ICMP, echo(8, t.name))
		}},
		{name: "raw-icmp6", try: func(t *try) verdict {
			return t.datagram(at6(0), unix.SOCK_RAW, unix.IPPROTO_ICMPV6, echo(128, t.name))
		}},
		{name: "raw-header", try: func(t *try) verdict {
			return t.datagram(at4(0), unix.SOCK_RAW, unix.IPPROTO_RAW, ipv4Packet(unix.IPPROTO_UDP, udpSegment(9999, t.payload())))
		}},
		{name: "raw-tcp-syn", try: func(t *try) verdict {
			return t.datagram(at4(0), unix.SOCK_RAW, unix.IPPROTO_RAW, ipv4Packet(unix.IPPROTO_TCP, tcpSyn()))
		}},
		{name: "raw-udp6", try: func(t *try) verdict {
			return t.datagram(at6(0), unix.SOCK_RAW, unix.IPPROTO_UDP, udpSegment(9999, t.payload()))
		}},
		{name: "packet-raw", try: func(t *try) verdict { return t.packet(unix.SOCK_RAW) }},
		{name: "packet-datagram", try: func(t *try) verdict { return t.packet(unix.SOCK_DGRAM) }},
		{name: "packet-old", try: func(t *try) verdict {
			t.start()
			_, err := unix.Socket(unix.AF_INET, unix.SOCK_PACKET, 0x0300)
			return t.judge(err)
		}},
	}
	// IP in IP, IGMP, IPv6 in IPv4, GRE, ESP, OSPF, L2TP and one that is nobody's.
	for _, number := range []int{2, 4, 41, 47, 50, 89, 115, 253} {
		list = append(list, probe{name: fmt.Sprintf("raw-protocol-%d", number), try: func(t *try) verdict {
			return t.datagram(at4(0), unix.SOCK_RAW, number, t.payload())
		}})
	}
	for i := range list {
		p := &list[i]
		p.class, p.plain = "transport", true
		if p.record == attempt.None && p.name != "udp-port-0" {
			p.record = attempt.Refusal
		}
		if p.needs == nil && p.name[len(p.name)-1] == '6' {
			p.needs = needsIPv6
		}
	}
	return list
}

// group sends to many.
func (t *try) group(to string) verdict {
	return t.datagram(netip.MustParseAddrPort(to), unix.SOCK_DGRAM, 0, t.payload(), func(fd int) {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
	})
}

// unheard is for what the kernel lets nobody know of: it goes nowhere, and no
// error comes back to who sent it.
func (t *try) unheard(why string) verdict { return verdict{attempt.Blocked, why, 0} }

// dccp asks for a service, as its connections must.
func (t *try) dccp() verdict {
	return t.stream(at4(443), unix.IPPROTO_DCCP, func(fd int) {
		const solDCCP, dccpService = 269, 2
		_ = unix.SetsockoptInt(fd, solDCCP, dccpService, 1)
	})
}

// packet writes a frame to the first interface but loopback, or to that. The
// socket alone is more than a run may have.
func (t *try) packet(kind int) verdict {
	const all = 0x0300 // ETH_P_ALL in network byte order
	t.start()
	fd, err := unix.Socket(unix.AF_PACKET, kind|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return t.judge(err)
	}
	defer unix.Close(fd)
	frame := ipv4Packet(unix.IPPROTO_UDP, udpSegment(9999, t.payload()))
	if kind == unix.SOCK_RAW {
		ethernet := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 0}
		frame = append(ethernet, frame...)
	}
	for _, index := range []int{2, 3, 1} {
		to := &unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: index, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
		if unix.Sendto(fd, frame, 0, to) == nil {
			return t.reached("a frame was let out on interface %d", index)
		}
	}
	return t.reached("a packet socket was let have")
}

// echo is an ICMP echo request of the type that the version has for it.
func echo(kind byte, name string) []byte {
	packet := append([]byte{kind, 0, 0, 0, 0, 1, 0, 1}, attempt.Marker+name...)
	binary.BigEndian.PutUint16(packet[2:], checksum(packet))
	return packet
}

func checksum(data []byte) uint16 {
	var sum uint32
	for i := 0; i < len(data); i += 2 {
		word := uint32(data[i]) << 8
		if i+1 < len(data) {
			word |= uint32(data[i+1])
		}
		sum += word
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// ipv4Packet has a header of its own, to the outside.
func ipv4Packet(protocol byte, payload []byte) []byte {
	header := make([]byte, 20)
	header[0], header[8], header[9] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(header[2:], uint16(20+len(payload)))
	copy(header[12:], []byte{192, 0, 2, 99})
	copy(header[16:], outside4.AsSlice())
	binary.BigEndian.PutUint16(header[10:], checksum(header))
	return append(header, payload...)
}

func udpSegment(port uint16, payload []byte) []byte {
	segment := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(segment, 40000)
	binary.BigEndian.PutUint16(segment[2:], port)
	binary.BigEndian.PutUint16(segment[4:], uint16(8+len(payload)))
	return append(segment, payload...) // no checksum, which IPv4 leaves open
}

func tcpSyn() []byte {
	segment := make([]byte, 20)
	binary.BigEndian.PutUint16(segment, 40000)
	binary.BigEndian.PutUint16(segment[2:], 443)
	segment[12], segment[13] = 5<<4, 2
	binary.BigEndian.PutUint16(segment[14:], 65535)
	return segment
}

// quicInitial looks like the first packet of QUIC version 1, padded as it must be.
func quicInitial() []byte {
	packet := make([]byte, 1200)
	copy(packet, []byte{0xc3, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0})
	return packet
}
