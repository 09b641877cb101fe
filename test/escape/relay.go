package main

import (
	"net/netip"

	"agentops/test/escape/attempt"

	"golang.org/x/sys/unix"
)

// relayProbes send beside what a rule lets datagrams go to: the allowed host, and the
// names below the other, at one port.
func relayProbes() []probe {
	datagram := func(name, host string, port uint16, prepare ...func(fd int)) probe {
		return probe{name: name, class: "transport", record: attempt.Refusal, try: func(t *try) verdict {
			addr, err := netip.ParseAddr(host)
			if err != nil {
				addr, err = lookUp(host)
			}
			if err != nil {
				return t.silent("look up %s: %v", host, err)
			}
			return t.mute(t.datagram(netip.AddrPortFrom(addr, port), unix.SOCK_DGRAM, 0, append(t.payload(), make([]byte, 500)...), prepare...))
		}}
	}
	const port = attempt.DatagramPort
	from := func(source string) func(fd int) {
		return func(fd int) {
			_ = unix.Bind(fd, &unix.SockaddrInet4{Addr: netip.MustParseAddr(source).As4()})
		}
	}
	return []probe{
		datagram("relay-port-below", attempt.Allowed, port-1),
		datagram("relay-quic", attempt.Allowed, 443),
		datagram("relay-address", outside4.String(), port),
		datagram("relay-address6", outside6.String(), port),
		datagram("relay-other-name", attempt.Refused, port),
		datagram("relay-nobodys", "198.18.250.1", port),
		datagram("relay-ec2", "a-a9fea9fe."+attempt.Rebound, port),
		datagram("relay-loopback", "a-7f000001."+attempt.Rebound, port),
		datagram("relay-multicast", "a-e0000001."+attempt.Rebound, port),
		// The answer would go to another that may be allowed.
		datagram("relay-as-allowed", attempt.Allowed, port, from("198.18.0.1")),
		datagram("relay-as-outside", attempt.Allowed, port, from("192.175.48.1")),
		datagram("relay-segmented", attempt.Allowed, port, func(fd int) {
			_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 64)
		}),
	}
}
