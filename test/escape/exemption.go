package main

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"

	"agentops/test/escape/attempt"

	"golang.org/x/sys/unix"
)

// exemptionProbes look for those that are let pass: who is somebody else, marks
// what it sends, or comes from where the proxy does.
func exemptionProbes() []probe {
	var list []probe
	// Every rule by uid has one for the proxy's own.
	for _, uid := range []int{1, 13, 33, 99, 998, 1000, 1337, 65534, 2147483646} {
		list = append(list, probe{name: fmt.Sprintf("uid-%d", uid), root: true, try: func(t *try) verdict {
			if err := syscall.Setreuid(uid, uid); err != nil {
				return t.silent("become uid %d: %v", uid, err)
			}
			return t.tcp(at4(443))
		}})
	}
	list = append(list, probe{name: "gid-1337", root: true, try: func(t *try) verdict {
		if err := syscall.Setregid(1337, 1337); err != nil {
			return t.silent("become gid 1337: %v", err)
		}
		return t.tcp(at4(443))
	}})
	option := func(name string, level, option, value int) {
		list = append(list, probe{name: name, try: func(t *try) verdict {
			return t.tcp(at4(443), func(fd int) { _ = unix.SetsockoptInt(fd, level, option, value) })
		}})
	}
	option("mark-1", unix.SOL_SOCKET, unix.SO_MARK, 1)
	option("mark-proxy", unix.SOL_SOCKET, unix.SO_MARK, 1337)
	option("mark-all", unix.SOL_SOCKET, unix.SO_MARK, -1)
	option("priority", unix.SOL_SOCKET, unix.SO_PRIORITY, 7)
	option("dont-route", unix.SOL_SOCKET, unix.SO_DONTROUTE, 1)
	option("transparent", unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1)
	option("freebind", unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
	option("unicast-if", unix.IPPROTO_IP, unix.IP_UNICAST_IF, 2<<24)
	option("ttl-1", unix.IPPROTO_IP, unix.IP_TTL, 1)
	option("tos", unix.IPPROTO_IP, unix.IP_TOS, 0xe0)
	option("bind-ifindex", unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, 1)
	option("tcp-repair", unix.IPPROTO_TCP, unix.TCP_REPAIR, 1)
	device := func(device string) {
		list = append(list, probe{name: "device-" + device, try: func(t *try) verdict {
			return t.tcp(at4(443), func(fd int) { _ = unix.BindToDevice(fd, device) })
		}})
	}
	device("lo")
	device("eth0")
	list = append(list, probe{name: "source-route", try: func(t *try) verdict {
		// Loose source routing, by the host's address.
		return t.tcp(at4(443), func(fd int) {
			hop := netip.MustParseAddr(t.stage.Host4).As4()
			options := append([]byte{131, 7, 4}, hop[:]...)
			_ = unix.SetsockoptString(fd, unix.IPPROTO_IP, unix.IP_OPTIONS, string(append(options, 0)))
		})
	}})
	from := func(name, source string) {
		list = append(list, probe{name: name, try: func(t *try) verdict {
			return t.tcp(at4(443), func(fd int) {
				for _, option := range []int{unix.IP_TRANSPARENT, unix.IP_FREEBIND} {
					_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, option, 1)
				}
				_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
				_, sa := sockaddr(netip.MustParseAddrPort(source))
				_ = unix.Bind(fd, sa)
			})
		}})
	}
	from("from-proxy", "198.19.255.253:0")
	from("from-loopback", "127.0.0.1:0")
	from("from-outside", "192.175.48.1:0")
	from("from-port-53", "0.0.0.0:53")
	from("from-port-443", "0.0.0.0:443")
	list = append(list,
		probe{name: "proxy-itself", try: func(t *try) verdict {
			// At its own address, where it could take itself for the destination.
			to, ok := proxyListener()
			if !ok {
				return t.silent("the proxy's listener is not in /proc/net/tcp")
			}
			return t.tcp(to)
		}},
		probe{name: "proxy-dns-tcp", record: attempt.Flow, try: func(t *try) verdict {
			return t.tcp(netip.MustParseAddrPort("198.19.255.253:443"))
		}},
		probe{name: "proxy-dns-udp", record: attempt.Refusal, try: func(t *try) verdict {
			return t.mute(t.datagram(netip.MustParseAddrPort("198.19.255.253:53"), unix.SOCK_DGRAM, 0, t.payload()))
		}},
		probe{name: "listen-everywhere", try: func(t *try) verdict { return t.listenAll(false) }},
		probe{name: "share-proxy-port", try: func(t *try) verdict { return t.listenAll(true) }},
		probe{name: "udp-from-53", record: attempt.Refusal, try: func(t *try) verdict {
			return t.datagram(at4(9999), unix.SOCK_DGRAM, 0, t.payload(), func(fd int) {
				_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
				_ = unix.Bind(fd, &unix.SockaddrInet4{Port: 53, Addr: [4]byte{127, 0, 0, 1}})
			})
		}},
		probe{name: "udp-mark", record: attempt.Refusal, try: func(t *try) verdict {
			return t.datagram(at4(9999), unix.SOCK_DGRAM, 0, t.payload(), func(fd int) {
				_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 1)
			})
		}},
		probe{name: "udp-transparent", record: attempt.Refusal, try: func(t *try) verdict {
			return t.mute(t.datagram(at4(9999), unix.SOCK_DGRAM, 0, t.payload(), func(fd int) {
				_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1)
				_ = unix.Bind(fd, &unix.SockaddrInet4{Port: 5353, Addr: [4]byte{192, 175, 48, 1}})
			}))
		}},
		probe{name: "routing-header", record: attempt.Refusal, needs: needsIPv6, try: func(t *try) verdict {
			// A segment routing header, by an address on the way (RFC 8754).
			return t.datagram(at6(9999), unix.SOCK_DGRAM, 0, t.payload(), func(fd int) {
				header := make([]byte, 24)
				header[1], header[2], header[3] = 2, 4, 1
				hop := netip.MustParseAddr("2620:4f:8000::1").As16()
				copy(header[8:], hop[:])
				_ = unix.SetsockoptString(fd, unix.IPPROTO_IPV6, unix.IPV6_RTHDR, string(header))
			})
		}},
	)
	for i := range list {
		p := &list[i]
		p.class = "exemption"
		if p.record == attempt.None && p.name != "routing-header" {
			p.record = attempt.Flow
		}
		// What becomes another user or takes ports is for runs alone.
		p.plain = !p.root && !strings.HasPrefix(p.name, "proxy") && p.name != "listen-everywhere" && p.name != "share-proxy-port"
	}
	return list
}

// proxyListener finds the proxy's listener among the sockets of the namespace.
func proxyListener() (netip.AddrPort, bool) {
	for _, to := range listeners() {
		if to.Addr() == netip.MustParseAddr("198.19.255.253") {
			return to, true
		}
	}
	return netip.AddrPort{}, false
}

// listeners are the addresses that TCP over IPv4 is listened at.
func listeners() []netip.AddrPort {
	content, err := os.ReadFile("/proc/self/net/tcp")
	if err != nil {
		return nil
	}
	var list []netip.AddrPort
	for line := range strings.Lines(string(content)) {
		fields := strings.Fields(line)
		if len(fields) < 4 || fields[3] != "0A" {
			continue
		}
		host, port, _ := strings.Cut(fields[1], ":")
		word, err := hex.DecodeString(host)
		number, portErr := strconv.ParseUint(port, 16, 16)
		if err != nil || portErr != nil || len(word) != 4 {
			continue
		}
		var bytes [4]byte
		binary.NativeEndian.PutUint32(bytes[:], binary.BigEndian.Uint32(word))
		list = append(list, netip.AddrPortFrom(netip.AddrFrom4(bytes), uint16(number)))
	}
	return list
}

// listenAll listens at every address, to be given the connections that are the
// proxy's; with share, at the proxy's own port.
func (t *try) listenAll(share bool) verdict {
	to := at4(44300)
	if share {
		own, ok := proxyListener()
		if !ok {
			return t.silent("the proxy's listener is not in /proc/net/tcp")
		}
		to = at4(own.Port())
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return t.blocked(err)
	}
	defer unix.Close(fd)
	for _, option := range []int{unix.SO_REUSEADDR, unix.SO_REUSEPORT} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1)
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(to.Port())}); err == nil {
		_ = unix.Listen(fd, 16)
	}
	v := t.tcp(to)
	if accepted, _, err := unix.Accept(fd); err == nil {
		unix.Close(accepted)
		return t.reached("a connection to the outside was given to the run's own listener")
	}
	return v
}
