package test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"agentops/audit"
	"agentops/mitm"
	"agentops/mitm/authority"
	"agentops/mitm/policy"
	"agentops/mitm/resolver"
	"agentops/test/awsstub"

	"github.com/sirupsen/logrus"
)

// What one HTTPS request through the proxy may allocate, its record included. A
// change that makes it less commits the new figure; one that makes it more says why.
const (
	allocationsPerRequest = 14
	allocationsTolerance  = 3
)

// Times depend on the machine, allocations do not: what a request costs must not grow
// unseen. Two of them are of the client and the upstream here.
func TestAllocationsPerRequest(t *testing.T) {
	conn := dialThroughProxy(t)
	request := []byte("GET /1k HTTP/1.1\r\nHost: origin.test\r\nUser-Agent: guard\r\nAccept: */*\r\n\r\n")
	buf := make([]byte, 8<<10)
	exchange := func() {
		if _, err := conn.Write(request); err != nil {
			t.Fatal(err)
		}
		if _, err := readUntil(conn, buf, []byte(endOfBody)); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		exchange()
	}
	// A collection empties the pools, which would be filled again.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	got := testing.AllocsPerRun(1000, exchange)
	t.Logf("%v allocations per request", got)
	if got < allocationsPerRequest-allocationsTolerance || got > allocationsPerRequest+allocationsTolerance {
		t.Errorf("%v allocations per request, want %d (within %d)", got, allocationsPerRequest, allocationsTolerance)
	}
}

// endOfBody ends the upstream's answer and is nowhere else in it.
const endOfBody = "the end"

// dialThroughProxy returns a TLS connection to an upstream, through a proxy with a
// journal as runs have it.
func dialThroughProxy(t *testing.T) *tls.Conn {
	trusted, upstream := serveKibibyte(t)
	ours, err := authority.New("guard")
	must(t, err)
	pin, err := mitm.ParsePin("*=" + upstream)
	must(t, err)
	journal, err := audit.Create(filepath.Join(t.TempDir(), "journal.jsonl"), "guard")
	must(t, err)
	t.Cleanup(func() { journal.Close() })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	log := logrus.New()
	log.SetOutput(io.Discard)
	rules := &policy.Policy{Mode: policy.Permissive}
	proxy := mitm.New(mitm.Config{
		Policy: rules, Authority: ours, Names: resolver.NewNames(), Dialer: mitm.NewDialer([]mitm.Pin{pin}, rules),
		Upstreams: func() *x509.CertPool { return trusted }, Recorder: journal, Log: log,
	})
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- proxy.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-served)
	})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ours.PEM())
	conn, err := tls.Dial("tcp", listener.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "origin.test"})
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// serveKibibyte answers every request with 1 KiB, over TLS; it returns the roots of
// its certificate and its address.
func serveKibibyte(t *testing.T) (*x509.CertPool, string) {
	ca, err := awsstub.NewAuthority()
	must(t, err)
	leaf, err := ca.Leaf("origin.test")
	must(t, err)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{*leaf}})
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n" +
		strings.Repeat("x", 1024-len(endOfBody)) + endOfBody)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				buf := make([]byte, 8<<10)
				for {
					if _, err := readUntil(conn, buf, []byte("\r\n\r\n")); err != nil {
						return
					}
					if _, err := conn.Write(answer); err != nil {
						return
					}
				}
			}()
		}
	}()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.PEM())
	return roots, listener.Addr().String()
}

// readUntil reads into buf until what was read ends with end.
func readUntil(conn net.Conn, buf, end []byte) (int, error) {
	for n := 0; ; {
		m, err := conn.Read(buf[n:])
		n += m
		if bytes.HasSuffix(buf[:n], end) || err != nil {
			return n, err
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
