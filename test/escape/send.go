package main

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"unsafe"

	"agentops/test/escape/attempt"

	"golang.org/x/sys/unix"
)

// sendProbes send in every way that there is.
func sendProbes() []probe {
	udp := func(name string, send func(t *try, fd int) verdict) probe {
		return probe{name: name, record: attempt.Refusal, try: func(t *try) verdict {
			t.start()
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return t.blocked(err)
			}
			defer unix.Close(fd)
			receiveErrors(fd, unix.AF_INET)
			return send(t, fd)
		}}
	}
	_, to := sockaddr(at4(9999))
	list := []probe{
		udp("connect-write", func(t *try, fd int) verdict {
			if err := unix.Connect(fd, to); err != nil {
				return t.blocked(err)
			}
			if _, err := unix.Write(fd, t.payload()); err != nil {
				return t.blocked(err)
			}
			return t.verdictOf(fd)
		}),
		udp("sendmsg", func(t *try, fd int) verdict {
			if err := unix.Sendmsg(fd, t.payload(), nil, to, 0); err != nil {
				return t.blocked(err)
			}
			return t.verdictOf(fd)
		}),
		udp("sendmmsg", func(t *try, fd int) verdict { return t.sendmmsg(fd) }),
		udp("segmented", func(t *try, fd int) verdict {
			// One call, many datagrams (UDP_SEGMENT).
			_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 64)
			data := append(t.payload(), make([]byte, 500)...)
			if err := unix.Sendto(fd, data, 0, to); err != nil {
				return t.blocked(err)
			}
			return t.verdictOf(fd)
		}),
		udp("zerocopy", func(t *try, fd int) verdict {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1)
			if err := unix.Sendto(fd, t.payload(), unix.MSG_ZEROCOPY, to); err != nil {
				return t.blocked(err)
			}
			return t.verdictOf(fd)
		}),
		udp("corked", func(t *try, fd int) verdict {
			if err := unix.Sendto(fd, t.payload(), unix.MSG_MORE, to); err != nil {
				return t.blocked(err)
			}
			if err := unix.Sendto(fd, []byte("."), 0, to); err != nil {
				return t.blocked(err)
			}
			return t.verdictOf(fd)
		}),
		udp("readdressed", func(t *try, fd int) verdict {
			// Connected to where it may, then sent elsewhere.
			_, local := sockaddr(netip.MustParseAddrPort("127.0.0.1:9"))
			if err := unix.Connect(fd, local); err != nil {
				return t.blocked(err)
			}
			if err := unix.Sendto(fd, t.payload(), 0, to); err != nil {
				return t.blocked(err)
			}
			return t.mute(t.verdictOf(fd))
		}),
		udp("reconnected", func(t *try, fd int) verdict {
			_, resolver := sockaddr(netip.AddrPortFrom(outside4, 53))
			_ = unix.Connect(fd, resolver)
			_ = disconnect(fd)
			if err := unix.Connect(fd, to); err != nil {
				return t.blocked(err)
			}
			if _, err := unix.Write(fd, t.payload()); err != nil {
				return t.blocked(err)
			}
			return t.verdictOf(fd)
		}),
		udp("pktinfo", func(t *try, fd int) verdict {
			// By the interface and source that a control message names.
			info := unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: 1, Spec_dst: [4]byte{127, 0, 0, 1}})
			if err := unix.Sendmsg(fd, t.payload(), info, to, 0); err != nil {
				return t.blocked(err)
			}
			return t.verdictOf(fd)
		}),
		{name: "fastopen-send", record: attempt.Flow, try: func(t *try) verdict { return t.fastOpen(at4(443)) }},
		{name: "fastopen-send6", record: attempt.Flow, needs: needsIPv6, try: func(t *try) verdict { return t.fastOpen(at6(443)) }},
		{name: "tfo-connect", record: attempt.Flow, try: func(t *try) verdict {
			return t.tcp(at4(443), func(fd int) {
				_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1)
				_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_NO_COOKIE, 1)
			})
		}},
		{name: "tcp-disconnected", record: attempt.Flow, try: func(t *try) verdict {
			// A socket that was connected once, to itself, and is used again.
			return t.tcp(at4(443), func(fd int) {
				_, local := sockaddr(netip.MustParseAddrPort("127.0.0.1:9"))
				_ = unix.Connect(fd, local)
				_ = disconnect(fd)
			})
		}},
		{name: "tcp-defer", record: attempt.Flow, try: func(t *try) verdict {
			return t.tcp(at4(443), func(fd int) { _ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 1) })
		}},
		{name: "tcp-urgent", record: attempt.Flow, try: func(t *try) verdict { return t.urgent() }},
		{name: "splice", record: attempt.Flow, try: func(t *try) verdict { return t.spliced() }},
		{name: "io-uring", record: attempt.Refusal, needs: needsCall(unix.SYS_IO_URING_SETUP), try: func(t *try) verdict {
			params := make([]byte, 120)
			t.start()
			_, err := call(unix.SYS_IO_URING_SETUP, 4, address(params))
			return t.judge(err)
		}},
		{name: "dns-port-data", record: attempt.Query, try: func(t *try) verdict { return t.notDNS() }},
	}
	list = append(list, legacyProbes()...)
	for i := range list {
		list[i].class = "send"
		list[i].plain = true
	}
	return list
}

// mute is for sockets that the kernel gives no errors of other places to than
// where they are connected.
func (t *try) mute(v verdict) verdict {
	if v.outcome == attempt.Silent {
		return t.unheard("no error for a socket that is connected elsewhere")
	}
	return v
}

// needsCall says that the kernel has no such system call.
func needsCall(nr int) func(*attempt.Stage) string {
	return func(stage *attempt.Stage) string {
		if slices.Contains(stage.Kernel.Calls, nr) {
			return ""
		}
		return "the kernel has no such system call"
	}
}

func needsCompat(stage *attempt.Stage) string {
	if !stage.Kernel.Compat {
		return "the kernel makes no 32-bit system calls"
	}
	return ""
}

func needsX32(stage *attempt.Stage) string {
	if !stage.Kernel.X32 {
		return "the kernel makes no x32 system calls"
	}
	return ""
}

// legacyProbes enter the kernel by its other doors.
func legacyProbes() []probe {
	list := []probe{
		{name: "compat-connect", record: attempt.Flow, needs: needsCompat, try: func(t *try) verdict {
			fd, err := compat(compatSocket, unix.AF_INET, unix.SOCK_STREAM, 0)
			if err != nil {
				return t.blocked(err)
			}
			defer unix.Close(int(fd))
			low, mem, err := lowMemory()
			if err != nil {
				return t.silent("%v", err)
			}
			copy(mem, rawSockaddr(at4(443)))
			t.start()
			if _, err := compat(compatConnect, fd, low, 16); err != nil {
				return t.blocked(err)
			}
			return t.converse(int(fd))
		}},
		{name: "compat-multiplex", record: attempt.Refusal, needs: needsCompat, try: func(t *try) verdict {
			// One call for all of the socket calls, its arguments in memory.
			low, mem, err := lowMemory()
			if err != nil {
				return t.silent("%v", err)
			}
			for i, arg := range []uint32{unix.AF_VSOCK, unix.SOCK_STREAM, 0} {
				binary.NativeEndian.PutUint32(mem[4*i:], arg)
			}
			t.start()
			_, err = compat(compatSocketcall, 1, low) // SYS_SOCKET
			return t.judge(err)
		}},
	}
	for _, c := range []struct {
		name string
		nr   uintptr
		args []uintptr
	}{
		{"compat-vsock", compatSocket, []uintptr{unix.AF_VSOCK, unix.SOCK_STREAM, 0}},
		{"compat-packet", compatSocket, []uintptr{unix.AF_PACKET, unix.SOCK_RAW, 0x0300}},
		{"compat-io-uring", compatIoUring, []uintptr{4, 0}},
		{"compat-bpf", compatBPF, []uintptr{0, 0, 0}},
		{"compat-keyctl", compatKeyctl, []uintptr{0, ^uintptr(2), 0}},
		{"compat-unshare", compatUnshare, []uintptr{unix.CLONE_NEWNET}},
		{"compat-setns", compatSetns, []uintptr{0, unix.CLONE_NEWNET}},
	} {
		list = append(list, probe{name: c.name, record: attempt.Refusal, needs: needsCompat, try: func(t *try) verdict {
			t.start()
			_, err := compat(c.nr, c.args...)
			return t.judge(err)
		}})
	}
	for _, c := range []struct {
		name string
		nr   uintptr
		args []uintptr
	}{
		{"x32-vsock", unix.SYS_SOCKET, []uintptr{unix.AF_VSOCK, unix.SOCK_STREAM, 0}},
		{"x32-packet", unix.SYS_SOCKET, []uintptr{unix.AF_PACKET, unix.SOCK_RAW, 0x0300}},
		{"x32-bpf", unix.SYS_BPF, []uintptr{0, 0, 0}},
		{"x32-unshare", unix.SYS_UNSHARE, []uintptr{unix.CLONE_NEWNET}},
	} {
		list = append(list, probe{name: c.name, record: attempt.Refusal, needs: needsX32, try: func(t *try) verdict {
			t.start()
			_, err := call(x32|c.nr, c.args...)
			return t.judge(err)
		}})
	}
	return list
}

// disconnect dissolves a socket's association (connect(2), AF_UNSPEC).
func disconnect(fd int) error {
	none := make([]byte, 16)
	_, err := call(unix.SYS_CONNECT, uintptr(fd), address(none), uintptr(len(none)))
	return err
}

// rawSockaddr is a sockaddr_in as bytes.
func rawSockaddr(to netip.AddrPort) []byte {
	b := make([]byte, 16)
	binary.NativeEndian.PutUint16(b, unix.AF_INET)
	binary.BigEndian.PutUint16(b[2:], to.Port())
	copy(b[4:], to.Addr().AsSlice())
	return b
}

// sendmmsg sends two datagrams to two places by one call.
func (t *try) sendmmsg(fd int) verdict {
	type message struct {
		header unix.Msghdr
		length uint32
		_      [4]byte
	}
	messages := make([]message, 2)
	data := t.payload()
	vector := unix.Iovec{Base: &data[0], Len: uint64(len(data))}
	for i, port := range []uint16{9999, 9998} {
		name := rawSockaddr(at4(port))
		messages[i].header = unix.Msghdr{Name: &name[0], Namelen: uint32(len(name)), Iov: &vector, Iovlen: 1}
	}
	t.start()
	_, err := call(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&messages[0])), uintptr(len(messages)), 0)
	if err != nil {
		return t.blocked(err)
	}
	return t.verdictOf(fd)
}

// fastOpen sends data with the opening of a connection.
func (t *try) fastOpen(to netip.AddrPort) verdict {
	family, sa := sockaddr(to)
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return t.blocked(err)
	}
	defer unix.Close(fd)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_NO_COOKIE, 1)
	t.start()
	err = unix.Sendto(fd, t.payload(), unix.MSG_FASTOPEN|unix.MSG_NOSIGNAL, sa)
	if err != nil && err != unix.EINPROGRESS {
		return t.blocked(err)
	}
	if !wait(fd, unix.POLLOUT) {
		return t.silent("connect: no answer")
	}
	return t.converse(fd)
}

// urgent sends a byte out of band.
func (t *try) urgent() verdict {
	_, sa := sockaddr(at4(443))
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return t.blocked(err)
	}
	defer unix.Close(fd)
	t.start()
	if err := connect(fd, sa); err != nil {
		return t.blocked(err)
	}
	_ = unix.Sendto(fd, []byte("\x00"), unix.MSG_OOB|unix.MSG_NOSIGNAL, nil)
	return t.converse(fd)
}

// spliced moves the data from a pipe to the connection without a write of its own.
func (t *try) spliced() verdict {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return t.silent("pipe: %v", err)
	}
	if _, err := unix.Write(pipe[1], t.payload()); err != nil {
		return t.silent("write: %v", err)
	}
	return t.tcp(at4(443), func(fd int) {
		_, sa := sockaddr(at4(443))
		if connect(fd, sa) == nil {
			_, _ = unix.Splice(pipe[0], nil, fd, nil, 64, 0)
		}
	})
}

// notDNS sends what is no question to the port of questions.
func (t *try) notDNS() verdict {
	_, to := sockaddr(netip.AddrPortFrom(outside4, 53))
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return t.blocked(err)
	}
	defer unix.Close(fd)
	receiveErrors(fd, unix.AF_INET)
	t.start()
	if err := unix.Sendto(fd, append([]byte("twelve bytes"), t.payload()...), 0, to); err != nil {
		return t.blocked(err)
	}
	if !wait(fd, unix.POLLIN) {
		return t.silent("no answer")
	}
	buf := make([]byte, 512)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return t.blocked(err)
	}
	if n == 12 && buf[3]&0xf == 1 {
		return t.say(attempt.Blocked, "FORMERR")
	}
	return t.reached("it was answered: %q", buf[:n])
}
