package bpf_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"agentops/bpf"
	"agentops/netns"

	"github.com/cilium/ebpf/link"
	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// observed is a boundary whose processes are in a cgroup that is observed.
type observed struct {
	*boundary
	observer *bpf.Observer
	cgroup   *os.File
}

func newObserved(t *testing.T) *observed {
	t.Helper()
	return observe(t, newBoundary(t), 0)
}

func observe(t *testing.T, b *boundary, credentials uint16) *observed {
	t.Helper()
	o := &observed{boundary: b}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil || len(mounts) == 0 {
		t.Fatalf("no cgroup2: %v", err)
	}
	path := filepath.Join(mounts[0].Mountpoint, "agentops-test-"+strings.ToLower(strings.NewReplacer("/", "-", " ", "-").Replace(t.Name())))
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	})
	if o.cgroup, err = os.Open(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.cgroup.Close() })
	layout, err := bpf.ReadLayout()
	if err != nil {
		t.Fatal(err)
	}
	o.observer, err = bpf.LoadObserver(bpf.ObserverOptions{
		Redirect: o.redirect, Own4: netns.Own4, Own6: netns.Own6, Credentials: credentials, Layout: layout,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := o.observer.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := o.observer.Attach(path); err != nil {
		t.Fatal(err)
	}
	return o
}

// start starts a script of bash's in the namespace and the cgroup.
func (o *observed) start(t *testing.T, script string) *exec.Cmd {
	t.Helper()
	cmd := o.command(script)
	if err := o.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func (o *observed) command(script string) *exec.Cmd {
	cmd := exec.Command("/bin/bash", "-c", script)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(o.cgroup.Fd())}
	return cmd
}

func (o *observed) counted(t *testing.T) bpf.Counts {
	t.Helper()
	counts, err := o.redirect.Counts()
	if err != nil {
		t.Fatal(err)
	}
	return counts
}

func (o *observed) check(t *testing.T, what string, cmd *exec.Cmd, got bpf.Process, ok bool) {
	t.Helper()
	exe, err := filepath.EvalSymlinks("/bin/bash")
	if err != nil {
		t.Fatal(err)
	}
	want := bpf.Process{PID: cmd.Process.Pid, Parent: os.Getpid(), UID: 0, Comm: "bash", Exe: exe}
	if !ok || got != want {
		t.Errorf("the owner of %s is %+v, %v, want %+v", what, got, ok, want)
	}
}

func TestConnectionsHaveTheirProcess(t *testing.T) {
	o := newObserved(t)
	for _, c := range []struct {
		address  string
		listener *net.TCPListener
	}{
		{"203.0.113.7/443", o.tcp4},
		{"2001:db8::7/443", o.tcp6},
		{"::ffff:203.0.113.8/80", o.tcp4},
	} {
		// It has ended before the connection is looked at.
		cmd := o.start(t, "exec 3<>/dev/tcp/"+c.address)
		if err := cmd.Wait(); err != nil {
			t.Errorf("connect to %s: %v", c.address, err)
			continue
		}
		conn, err := c.listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		process, ok := o.observer.TCPOwner(endpoint(conn.RemoteAddr()), endpoint(conn.LocalAddr()))
		o.check(t, c.address, cmd, process, ok)
	}
	if counts := o.counted(t); counts.TCP != 3 {
		t.Errorf("%d connections are counted, want 3", counts.TCP)
	}
}

// The kernel sends more than 64 KiB of a connection in one piece where the link lets
// it, in IPv6 with an option of its own.
func TestLargeSegmentsPass(t *testing.T) {
	o := newObserved(t)
	if err := o.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetGSOMaxSize(lo, 400_000), netlink.LinkSetGSOIPv4MaxSize(lo, 400_000))
	}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		address  string
		listener *net.TCPListener
	}{
		{"203.0.113.7/443", o.tcp4},
		{"2001:db8::7/443", o.tcp6},
	} {
		const size = 64 << 20
		cmd := o.start(t, "exec head -c 64M /dev/zero > /dev/tcp/"+c.address)
		conn, err := c.listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, conn); n != size || err != nil {
			t.Errorf("%s: %d bytes of %d, %v", c.address, n, size, err)
		}
		conn.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	if counts := o.counted(t); counts.TCP != 2 || counts.Refused != 0 {
		t.Errorf("counts are %+v, want two connections and no refusal", counts)
	}
}

// Who uses a socket is who calls, not who has opened it or used it before.
func TestSharedSocketsHaveTheirUser(t *testing.T) {
	o := newObserved(t)
	cmd := o.start(t, `exec /usr/bin/python3 -c "
import ctypes, os, socket
tcp = socket.create_connection(('203.0.113.7', 443))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.sendto(b'question', ('192.0.2.53', 53))
if os.fork() == 0:
    udp.sendto(b'question', ('192.0.2.54', 53))
    ctypes.CDLL(None).connect(tcp.fileno(), bytes(16), 16) # AF_UNSPEC: disconnect
    tcp.connect(('203.0.113.7', 443))
    os._exit(0)
raise SystemExit(os.wait()[1])
"`)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	for i, parent := range []int{os.Getpid(), cmd.Process.Pid} {
		conn, err := o.tcp4.Accept()
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		process, ok := o.observer.TCPOwner(endpoint(conn.RemoteAddr()), endpoint(conn.LocalAddr()))
		if !ok || process.Parent != parent {
			t.Errorf("connection %d is of %+v, %v, want a child of %d", i, process, ok, parent)
		}
		_, from, err := o.dns4.ReadFromUDPAddrPort(make([]byte, 16))
		if err != nil {
			t.Fatal(err)
		}
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(53 + i)}), 53)
		if process, ok := o.observer.UDPOwner(from, to); !ok || process.Parent != parent {
			t.Errorf("datagram %d is of %+v, %v, want a child of %d", i, process, ok, parent)
		}
	}
	if counts := o.counted(t); counts.TCP != 2 || counts.DNS != 2 {
		t.Errorf("counts are %+v, want two connections and two datagrams", counts)
	}
}

// Between the run's own processes a connection is nobody's business; that to the
// credential server is the host's.
func TestLoopbackIsNotCounted(t *testing.T) {
	b := newBoundary(t)
	server, err := b.Listen("tcp4", netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	o := observe(t, b, endpoint(server.Addr()).Port())
	cmd := o.start(t, "exec 3<>/dev/tcp/"+strings.Replace(server.Addr().String(), ":", "/", 1))
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	conn, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	process, ok := o.observer.TCPOwner(endpoint(conn.RemoteAddr()), endpoint(conn.LocalAddr()))
	o.check(t, "the credential server's connection", cmd, process, ok)
	if counts := o.counted(t); counts.TCP != 0 {
		t.Errorf("%d connections to the proxy are counted, want none", counts.TCP)
	}
}

func TestDatagramsHaveTheirProcess(t *testing.T) {
	o := newObserved(t)
	cmd := o.start(t, "echo question > /dev/udp/192.0.2.53/53")
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	_, from, err := o.dns4.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	process, ok := o.observer.UDPOwner(from, netip.MustParseAddrPort("192.0.2.53:53"))
	o.check(t, "a question", cmd, process, ok)
	if counts := o.counted(t); counts.DNS != 1 || counts.Refused != 0 {
		t.Errorf("counts are %+v, want one datagram to the resolver", counts)
	}
}

func TestRelayedDatagramsHaveTheirProcess(t *testing.T) {
	o := newObserved(t)
	for _, c := range []struct {
		address, destination string
		conn                 *netns.Datagrams
	}{
		{"203.0.113.7/4460", "203.0.113.7:4460", o.udp4},
		{"2001:db8::7/4460", "[2001:db8::7]:4460", o.udp6},
		{"::ffff:203.0.113.7/4461", "203.0.113.7:4461", o.udp4},
	} {
		cmd := o.start(t, "echo question > /dev/udp/"+c.address)
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		_, source, destination, err := c.conn.Receive(make([]byte, 16))
		if err != nil || destination.String() != c.destination {
			t.Fatalf("received a datagram to %s, %v, want one to %s", destination, err, c.destination)
		}
		process, ok := o.observer.UDPOwner(source, destination)
		o.check(t, c.address, cmd, process, ok)
	}
	if counts := o.counted(t); counts != (bpf.Counts{Relayed: 3}) {
		t.Errorf("counts are %+v, want three datagrams to the relays", counts)
	}
}

// An answer to an address that is not the run's own would be given to the host's
// sockets. Nor may a run send as one of those it sends to, and so have two of them
// talk to each other.
func TestForeignSourcesAreRefused(t *testing.T) {
	o := newObserved(t)
	cmd := o.start(t, `exec /usr/bin/python3 -c "
import socket
for family, source, destination in (
        (socket.AF_INET, '9.9.9.9', '8.8.8.8'), (socket.AF_INET, '198.18.0.1', '8.8.8.8'), (socket.AF_INET6, '::ffff:9.9.9.9', '::ffff:8.8.8.8'),
        (socket.AF_INET6, '2001:db8::9', '2001:db8::8')):
    for port in 53, 4460:
        s = socket.socket(family, socket.SOCK_DGRAM)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            s.setsockopt(41, 78, 1)  # IPV6_FREEBIND
        s.bind((source, port))
        try:
            s.sendto(b'x', (destination, port))
        except PermissionError:
            continue
        raise SystemExit('it was sent')
"`)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if counts := o.counted(t); counts != (bpf.Counts{Refused: 8}) {
		t.Errorf("counts are %+v, want 8 refused", counts)
	}
}

// A checksum is the sender's choice, which a count does not ask for.
func TestDatagramsWithoutChecksumsArrive(t *testing.T) {
	o := newObserved(t)
	cmd := o.start(t, `exec /usr/bin/python3 -c "
import socket
for family, level, option, to in (socket.AF_INET, 1, 11, '203.0.113.7'), (socket.AF_INET6, 17, 101, '2001:db8::7'):
    for port in 53, 4460:
        s = socket.socket(family, socket.SOCK_DGRAM)
        s.setsockopt(level, option, 1)
        s.sendto(b'x', (to, port))
"`)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, conn := range []net.PacketConn{o.dns4, o.dns6, o.udp4, o.udp6} {
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if n, _, err := conn.ReadFrom(make([]byte, 16)); err != nil || n != 1 {
			t.Errorf("read %d bytes, %v", n, err)
		}
	}
	if counts := o.counted(t); counts != (bpf.Counts{DNS: 2, Relayed: 2}) {
		t.Errorf("counts are %+v, want two datagrams to the resolver and two to the relays", counts)
	}
}

func TestRefusalsNameTheProcess(t *testing.T) {
	o := newObserved(t)
	for _, c := range []struct {
		script, protocol, destination string
		fails                         bool // what the run tries fails in its own call
	}{
		{"echo quic > /dev/udp/203.0.113.7/443", "udp", "203.0.113.7:443", false},
		{"echo quic > /dev/udp/2001:db8::7/443", "udp", "[2001:db8::7]:443", false},
		{"echo hello > /dev/udp/224.0.0.251/5353", "udp", "224.0.0.251:5353", true},
		{"echo hello > /dev/udp/ff02::fb/5353", "udp", "[ff02::fb]:5353", true},
		{"echo hello > /dev/udp/::ffff:224.0.0.251/5353", "udp", "224.0.0.251:5353", true},
		{"echo hello > /dev/tcp/255.255.255.255/80", "tcp", "255.255.255.255:80", true},
	} {
		// It waits for us, so that it can still be looked at.
		cmd := o.command("{ " + c.script + "; } 2>/dev/null; echo $?; read line")
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := o.Do(cmd.Start); err != nil {
			t.Fatal(err)
		}
		code := make([]byte, 2)
		if _, err := io.ReadFull(stdout, code); err != nil || (code[0] != '0') != c.fails {
			t.Errorf("%s: exit code %s, %v", c.script, code, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // what is in the buffer comes all the same
		seen := 0
		err = o.redirect.Refusals(ctx, o.observer, func(r bpf.Refusal) error {
			seen++
			if r.Protocol != c.protocol || r.Destination.String() != c.destination {
				t.Errorf("%s: refused %s to %s", c.script, r.Protocol, r.Destination)
			}
			if r.Process == nil {
				t.Errorf("%s: the process is not known", c.script)
				return nil
			}
			o.check(t, c.script, cmd, *r.Process, true)
			return nil
		})
		if err != nil || seen != 1 {
			t.Errorf("%s: %d refusals, %v", c.script, seen, err)
		}
		stdin.Close()
		_ = cmd.Wait() // its code is that of read
	}
	if counts := o.counted(t); counts.Refused != 6 || counts.Lost != 0 {
		t.Errorf("counts are %+v, want 6 refused", counts)
	}
}

// What the redirect would not see, or count right, is refused where it is sent.
func TestOddDatagramsAreRefused(t *testing.T) {
	for name, c := range map[string]struct{ socket, address string }{
		// One send can make many datagrams of what it is given.
		"UDP_SEGMENT":         {"socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(17, 103, 100)", `("192.0.2.53", 53)`},
		"UDP_SEGMENT relayed": {"socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(17, 103, 100)", `("192.0.2.53", 4460)`},
		// An extension header, here of padding.
		"IPV6_DSTOPTS": {"socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.setsockopt(41, 59, bytes([0, 0, 1, 4, 0, 0, 0, 0]))", `("2001:db8::53", 53)`},
	} {
		t.Run(name, func(t *testing.T) {
			o := newObserved(t)
			cmd := o.start(t, `exec /usr/bin/python3 -c "
import socket
s = `+c.socket+`
try:
    s.sendto(bytes(1000), `+strings.ReplaceAll(c.address, `"`, `'`)+`)
except PermissionError:
    pass
else:
    raise SystemExit('it was sent')
"`)
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
			if counts := o.counted(t); counts != (bpf.Counts{Refused: 1}) {
				t.Errorf("counts are %+v, want one refusal", counts)
			}
		})
	}
}

func TestDetachedProgramsAreNoticed(t *testing.T) {
	o := newObserved(t)
	if err := o.redirect.Attached(); err != nil {
		t.Error(err)
	}
	if err := o.observer.Attached(); err != nil {
		t.Error(err)
	}
	detach(t, o.cgroup, o.File())
	if err := o.redirect.Attached(); err == nil {
		t.Error("the redirect was detached and does not say so")
	}
	if err := o.observer.Attached(); err == nil {
		t.Error("the observer was detached and does not say so")
	}
}

// detach takes off all programs of a cgroup and of a namespace, as root on the host
// can.
func detach(t *testing.T, cgroup, namespace *os.File) {
	t.Helper()
	var inCgroup, inNamespace unix.Stat_t
	if err := errors.Join(unix.Fstat(int(cgroup.Fd()), &inCgroup), unix.Fstat(int(namespace.Fd()), &inNamespace)); err != nil {
		t.Fatal(err)
	}
	it := new(link.Iterator)
	defer it.Close()
	for it.Next() {
		info, err := it.Link.Info()
		if err != nil {
			t.Fatal(err)
		}
		ofCgroup := info.Type == link.CgroupType && info.Cgroup().CgroupId == inCgroup.Ino
		ofNamespace := info.Type == link.NetNsType && uint64(info.NetNs().NetnsInode) == inNamespace.Ino
		if !ofCgroup && !ofNamespace {
			continue
		}
		if err := it.Link.Detach(); err != nil {
			t.Error(err)
		}
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
}

func endpoint(addr net.Addr) netip.AddrPort {
	ap := addr.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// Refusals that come faster than they are read are counted, each.
func TestLostRefusalsAreCounted(t *testing.T) {
	o := newObserved(t)
	const sent = 5000 // more than the ring buffer holds
	script := fmt.Sprintf(`exec /usr/bin/python3 -c '
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(%d):
    s.sendto(b"x", ("203.0.113.7", 443))
'`, sent)
	if err := o.start(t, script).Wait(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var seen uint64
	err := o.redirect.Refusals(ctx, o.observer, func(bpf.Refusal) error { seen++; return nil })
	if err != nil {
		t.Fatal(err)
	}
	if counts := o.counted(t); counts.Refused != sent || counts.Lost == 0 || seen+counts.Lost != sent {
		t.Errorf("%d refusals were seen, counts are %+v, want %d in all", seen, counts, sent)
	}
}
