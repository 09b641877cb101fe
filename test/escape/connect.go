package main

import (
	"errors"
	"net/netip"
	"strconv"
	"time"

	"agentops/test/escape/attempt"

	"golang.org/x/sys/unix"
)

// patience is how long a refusal is waited for before it counts as silence.
// Outside of a run nobody waits for one.
var patience = time.Second

// sockaddr is an address for system calls; zone is an interface's index.
func sockaddr(to netip.AddrPort) (family int, sa unix.Sockaddr) {
	if to.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	sa6 := &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	if zone := to.Addr().Zone(); zone != "" {
		index, _ := strconv.Atoi(zone)
		sa6.ZoneId = uint32(index)
	}
	return unix.AF_INET6, sa6
}

// wait waits for events on a descriptor; false: in vain.
func wait(fd int, events int16) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for deadline := time.Now().Add(patience); ; {
		left := time.Until(deadline)
		if left <= 0 {
			return false
		}
		n, err := unix.Poll(fds, int(left.Milliseconds())+1)
		if err == unix.EINTR {
			continue
		}
		return err == nil && n > 0
	}
}

// connect connects a nonblocking socket.
func connect(fd int, sa unix.Sockaddr) error {
	err := unix.Connect(fd, sa)
	if err != unix.EINPROGRESS {
		return err
	}
	if !wait(fd, unix.POLLOUT) {
		return unix.ETIMEDOUT
	}
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && code != 0 {
		err = unix.Errno(code)
	}
	return err
}

// tcp connects to an address, speaks what nobody knows, and sees what comes.
// prepare makes something of the socket before; what it may not, it goes without.
func (t *try) tcp(to netip.AddrPort, prepare ...func(fd int)) verdict {
	return t.stream(to, 0, prepare...)
}

func (t *try) stream(to netip.AddrPort, protocol int, prepare ...func(fd int)) verdict {
	family, sa := sockaddr(to)
	t.start()
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return t.judge(err)
	}
	defer unix.Close(fd)
	for _, f := range prepare {
		f(fd)
	}
	t.start()
	if err := connect(fd, sa); err != nil {
		if isErrno(err, unix.ETIMEDOUT) {
			return t.silent("connect: no answer")
		}
		return t.blocked(err)
	}
	return t.converse(fd)
}

// converse sends the payload on a connection and sees what comes.
func (t *try) converse(fd int) verdict {
	if _, err := unix.Write(fd, t.payload()); err != nil {
		return t.blocked(err)
	}
	if !wait(fd, unix.POLLIN) {
		return t.silent("connected, and neither a word nor a reset")
	}
	buf := make([]byte, 256)
	n, err := unix.Read(fd, buf)
	switch {
	case err != nil:
		return t.blocked(err)
	case n == 0:
		return t.say(attempt.Blocked, "closed")
	}
	return t.reached("it was answered: %q", buf[:n])
}

// datagram sends one to an address by a socket that is not connected, and waits
// for the kernel to say that it was refused.
func (t *try) datagram(to netip.AddrPort, kind, protocol int, data []byte, prepare ...func(fd int)) verdict {
	family, sa := sockaddr(to)
	t.start()
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return t.judge(err)
	}
	defer unix.Close(fd)
	receiveErrors(fd, family)
	for _, f := range prepare {
		f(fd)
	}
	t.start()
	if err := unix.Sendto(fd, data, 0, sa); err != nil {
		return t.blocked(err)
	}
	return t.verdictOf(fd)
}

// verdictOf waits for an error of a socket that has sent.
func (t *try) verdictOf(fd int) verdict {
	if !wait(fd, unix.POLLIN) {
		return t.silent("sent, and neither an answer nor an error")
	}
	buf := make([]byte, 2048)
	n, _, _, _, err := unix.Recvmsg(fd, buf, nil, 0)
	if err != nil {
		return t.blocked(err)
	}
	return t.reached("it was answered: %q", clip(string(buf[:n]), 64))
}

// receiveErrors makes a socket tell of refusals that it would keep to itself.
func receiveErrors(fd, family int) {
	// Without these the attempt is silent. A socket of IPv6 may send both.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1)
	if family == unix.AF_INET6 {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
	}
}

// addressProbes connect to every kind of address, at common and odd ports.
func addressProbes(stage *attempt.Stage) []probe {
	var list []probe
	add := func(name, to string, record attempt.Record) {
		list = append(list, probe{name: name, class: "address", plain: true, record: record, try: func(t *try) verdict {
			return t.tcp(netip.MustParseAddrPort(to))
		}})
	}
	for _, a := range []struct{ name, to string }{
		{"public-https", "192.175.48.77:443"},
		{"public-http", "192.175.48.77:80"},
		{"public-ssh", "192.175.48.77:22"},
		{"public-smtp", "192.175.48.77:25"},
		{"public-port-1", "192.175.48.77:1"},
		{"public-port-max", "192.175.48.77:65535"},
		{"documentation-1", "192.0.2.1:443"},
		{"documentation-2", "198.51.100.1:6667"},
		{"documentation-3", "203.0.113.1:4444"},
		{"private-10", "10.0.0.1:80"},
		{"private-172", "172.16.0.1:2375"},
		{"private-192", "192.168.0.1:445"},
		{"shared-100", "100.64.0.1:443"},
		{"benchmark-198", "198.18.77.77:443"},
		{"reserved-240", "240.0.0.1:443"},
		{"this-network", "0.1.2.3:443"},
	} {
		add(a.name, a.to, attempt.Flow)
	}
	add("broadcast", "255.255.255.255:80", attempt.Refusal)
	add("multicast-tcp", "224.0.0.1:80", attempt.Refusal)
	add("unspecified", "0.0.0.0:80", attempt.None)
	add("host-address", netip.AddrPortFrom(netip.MustParseAddr(stage.Host4), 22).String(), attempt.Flow)
	// The run's loopback is its own.
	hostLoopback := probe{name: "host-loopback", class: "address", try: func(t *try) verdict {
		return t.tcp(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), t.stage.Port))
	}}
	return append(list, hostLoopback)
}

// ipv6Probes write addresses in every way that IPv6 has.
func ipv6Probes(stage *attempt.Stage) []probe {
	var list []probe
	for _, a := range []struct{ name, to string }{
		{"v6-public", "[2620:4f:8000::77]:443"},
		{"v6-documentation", "[2001:db8::1]:80"},
		{"v6-mapped", "[::ffff:192.175.48.77]:443"},
		{"v6-mapped-private", "[::ffff:10.0.0.1]:80"},
		{"v6-mapped-metadata", "[::ffff:169.254.169.254]:80"},
		{"v6-compatible", "[::192.175.48.77]:443"},
		{"v6-translated", "[::ffff:0:192.175.48.77]:443"},
		{"v6-ula", "[fd00::1]:443"},
		{"v6-site-local", "[fec0::1]:443"},
		{"v6-link-local", "[fe80::77%1]:443"},
		{"v6-nat64", "[64:ff9b::192.175.48.77]:443"},
		{"v6-nat64-local", "[64:ff9b:1::192.175.48.77]:443"},
		{"v6-6to4", "[2002:c0af:304d::1]:443"},
		{"v6-teredo", "[2001:0:c0af:304d::1]:443"},
		{"v6-orchid", "[2001:20::1]:443"},
		{"v6-discard", "[100::1]:443"},
		{"v6-port-1", "[2620:4f:8000::77]:1"},
		{"v6-host-address", netip.AddrPortFrom(netip.MustParseAddr(stage.Host6), 22).String()},
	} {
		list = append(list, probe{name: a.name, class: "ipv6", plain: true, record: attempt.Flow, needs: needsIPv6, try: func(t *try) verdict {
			return t.tcp(netip.MustParseAddrPort(a.to))
		}})
	}
	for _, a := range []struct{ name, to string }{
		{"udp6-public", "[2620:4f:8000::77]:443"},
		{"udp6-mapped", "[::ffff:192.175.48.77]:443"},
		{"udp6-link-local", "[fe80::77%1]:5353"},
		{"udp6-multicast", "[ff02::fb%1]:5353"},
	} {
		list = append(list, probe{name: a.name, class: "ipv6", plain: true, record: attempt.Refusal, needs: needsIPv6, try: func(t *try) verdict {
			return t.datagram(netip.MustParseAddrPort(a.to), unix.SOCK_DGRAM, 0, t.payload())
		}})
	}
	loopback := probe{name: "v6-mapped-local", class: "ipv6", needs: needsIPv6, try: func(t *try) verdict {
		return t.tcp(netip.AddrPortFrom(netip.MustParseAddr("::ffff:127.0.0.1"), t.stage.Port))
	}}
	return append(list, loopback)
}

func needsIPv6(stage *attempt.Stage) string {
	if stage.Host6 == "" {
		return "the kernel has no IPv6"
	}
	return ""
}

// isErrno says whether an error is one of some errnos.
func isErrno(err error, errnos ...unix.Errno) bool {
	for _, errno := range errnos {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
