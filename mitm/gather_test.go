package mitm

import (
	"bytes"
	"crypto/rand"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// While much comes the kernel is to report no less, but less that is too long in coming
// all the same.
func TestGather(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	peer, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s, err := newSocket(conn.(tcpConn))
	if err != nil {
		t.Fatal(err)
	}
	enough := func() (n int) {
		if ctlErr := s.raw.Control(func(fd uintptr) { n, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT) }); ctlErr != nil || err != nil {
			t.Fatal(ctlErr, err)
		}
		return n
	}

	slow := gather{socket: s, limits: &limits{fast: 0, patience: time.Hour}}
	slow.wait()
	slow.took(sample)
	slow.wait()
	slow.stop()
	if n := enough(); n > 1 {
		t.Errorf("a slow flow waits for %d bytes", n)
	}

	g := gather{socket: s, limits: &limits{fast: time.Hour, patience: time.Millisecond}}
	defer g.stop()
	g.wait()
	g.took(sample - 1)
	g.wait()
	g.took(1)
	if n := enough(); n > 1 {
		t.Errorf("before it is known to be fast, a flow waits for %d bytes", n)
	}
	g.set(true)
	if n := enough(); n != gathered {
		t.Errorf("a fast flow waits for %d bytes", n)
	}
	if _, err := peer.Write(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	g.wait()
	reported := false
	if err := s.raw.Read(func(uintptr) bool {
		defer func() { reported = true }()
		return reported
	}); err != nil {
		t.Fatal(err)
	}
	if n := enough(); n != 1 {
		t.Errorf("after its patience was over, a flow waits for %d bytes", n)
	}
}

// A fast flow may become slow.
func TestAFastOpaqueFlowBecomesSlow(t *testing.T) {
	sent := make([]byte, 3*sample+100)
	rand.Read(sent)
	address := tcpServer(t, func(conn net.Conn) {
		first := make([]byte, 1)
		for _, piece := range [][]byte{sent[:3*sample], sent[3*sample:]} {
			if _, err := io.ReadFull(conn, first); err != nil {
				t.Error(err)
			}
			conn.Write(piece)
		}
	})
	b := newBench(t, benchConfig{pins: []string{"*=" + address}})
	b.proxy.limits.fast = time.Hour
	conn := b.dial("db.example.com:6379")
	got := make([]byte, len(sent))
	at := 0
	for _, n := range []int{3 * sample, 100} {
		conn.Write([]byte{0})
		if _, err := io.ReadFull(conn, got[at:at+n]); err != nil {
			t.Fatal(err)
		}
		at += n
	}
	if rest, err := io.ReadAll(conn); err != nil || len(rest) > 0 || !bytes.Equal(got, sent) {
		t.Errorf("something else came, %d more, %v", len(rest), err)
	}
	b.stop()
}
