package netns_test

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"agentops/netns"

	"golang.org/x/sys/unix"
)

func newNamespace(t *testing.T) *netns.Namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	return ns
}

func TestNamespaceHasOnlyLoopback(t *testing.T) {
	ns := newNamespace(t)
	err := ns.Do(func() error {
		links, err := os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		lines := strings.Split(strings.TrimSpace(string(links)), "\n")[2:]
		if len(lines) != 1 || !strings.HasPrefix(strings.TrimSpace(lines[0]), "lo:") {
			t.Errorf("interfaces are %q, want lo alone", lines)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Without a redirect nothing listens anywhere, so every connect must be refused
// by the namespace itself, not time out.
func TestEveryAddressIsLocalAndRefused(t *testing.T) {
	ns := newNamespace(t)
	for _, addr := range []string{"192.0.2.1:443", "10.0.0.1:22", "[2001:db8::1]:443", "[fd00::1]:80", "169.254.169.254:80"} {
		var dialErr error
		err := ns.Do(func() error {
			dialErr = connect(netip.MustParseAddrPort(addr))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if !errors.Is(dialErr, unix.ECONNREFUSED) {
			t.Errorf("connect to %s: %v, want connection refused", addr, dialErr)
		}
	}
}

func TestListenersBelongToTheNamespace(t *testing.T) {
	ns := newNamespace(t)
	listener, err := ns.Listen("tcp4", netip.MustParseAddrPort("198.18.255.253:8443"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := ns.Do(func() error { return connect(netip.MustParseAddrPort("198.18.255.253:8443")) }); err != nil {
		t.Errorf("connect inside the namespace: %v", err)
	}
	// An address that the host does not have could not be listened on there.
	if host, err := net.Listen("tcp4", "198.18.255.253:8443"); err == nil {
		host.Close()
		t.Error("the host has the namespace's address")
	}
}

// Congestion is controlled by what paces nothing, whatever the host's is: a timer for
// each packet would be dear. A client that has vanished is found out.
func TestAcceptedConnections(t *testing.T) {
	ns := newNamespace(t)
	listener, err := ns.Listen("tcp4", netip.MustParseAddrPort("198.18.255.253:8443"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := ns.Do(func() error { return connect(netip.MustParseAddrPort("198.18.255.253:8443")) }); err != nil {
		t.Fatal(err)
	}
	conn, err := listener.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	ctlErr := raw.Control(func(fd uintptr) {
		if algorithm, err := unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION); err != nil || algorithm != "reno" {
			t.Errorf("congestion is controlled by %s, want reno (%v)", algorithm, err)
		}
		for _, option := range []struct {
			name               string
			level, value, want int
		}{
			{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},
			{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15},
			{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9},
		} {
			if got, err := unix.GetsockoptInt(int(fd), option.level, option.value); err != nil || got != option.want {
				t.Errorf("%s is %d, want %d (%v)", option.name, got, option.want, err)
			}
		}
	})
	if ctlErr != nil {
		t.Fatal(ctlErr)
	}
}

func TestDoDoesNotMoveOtherThreads(t *testing.T) {
	before := hostNamespace(t)
	ns := newNamespace(t)
	var inside string
	if err := ns.Do(func() (err error) {
		inside, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if after := hostNamespace(t); after != before || inside == before {
		t.Errorf("host namespace %s before, %s after, %s inside", before, after, inside)
	}
}

func TestClosedNamespaceIsGone(t *testing.T) {
	ns := newNamespace(t)
	path := ns.Path()
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ns.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if target, err := os.Readlink(path); err == nil && strings.HasPrefix(target, "net:") || err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is %q, %v after Close", path, target, err)
	}
}

func hostNamespace(t *testing.T) string {
	t.Helper()
	name, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// connect makes one TCP connection from the current thread.
func connect(addr netip.AddrPort) error {
	family, sockaddr := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(addr.Port())})
	if addr.Addr().Is4() {
		sockaddr.(*unix.SockaddrInet4).Addr = addr.Addr().As4()
	} else {
		family, sockaddr = unix.AF_INET6, &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, sockaddr)
}

// The kernel makes the route by which an address of IPv6 is local in its own time.
// Until then none may be there that rejects.
func TestNothingIsRejected(t *testing.T) {
	ns := newNamespace(t)
	if !ns.IPv6() {
		return
	}
	err := ns.Do(func() error {
		routes, err := os.ReadFile("/proc/thread-self/net/ipv6_route")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(routes)) {
			fields := strings.Fields(line)
			flags, err := strconv.ParseUint(fields[8], 16, 32)
			if err != nil {
				return err
			}
			if ofNothing := fields[5] == "ffffffff"; flags&unix.RTF_REJECT != 0 && !ofNothing {
				t.Errorf("a route rejects: %s", line)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
