package mitm

import (
	"crypto/tls"
	"encoding/binary"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"agentops/audit"
	"agentops/mitm/policy"
)

// helloOf is the first that a client sends.
func helloOf(f *testing.F, config *tls.Config) []byte {
	f.Helper()
	ours, theirs := net.Pipe()
	defer theirs.Close()
	go func() { _ = tls.Client(theirs, config).Handshake() }()
	head := make([]byte, 5)
	if _, err := io.ReadFull(ours, head); err != nil {
		f.Fatal(err)
	}
	hello := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(ours, hello); err != nil {
		f.Fatal(err)
	}
	ours.Close()
	return append(head, hello...)
}

// fragmented is a hello in records of n bytes each.
func fragmented(hello []byte, n int) []byte {
	var out []byte
	for rest := hello[5:]; len(rest) > 0; {
		size := min(n, len(rest))
		out = append(out, hello[:3]...)
		out = binary.BigEndian.AppendUint16(out, uint16(size))
		out = append(out, rest[:size]...)
		rest = rest[size:]
	}
	return out
}

// Whatever a client begins with, be it to a name or to an address, nothing panics, and
// the flow is in the record: opened once, with a host in its one form, and closed.
func FuzzClientHello(f *testing.F) {
	for _, config := range []*tls.Config{
		{ServerName: "www.example.com"},
		{ServerName: "www.example.com", NextProtos: []string{"h2", "http/1.1"}},
		{ServerName: "www.example.com", NextProtos: []string{"acme-tls/1"}, MaxVersion: tls.VersionTLS12},
		{ServerName: "other.example.com", MinVersion: tls.VersionTLS13},
		{InsecureSkipVerify: true}, // no SNI
	} {
		hello := helloOf(f, config)
		f.Add(hello, true)
		f.Add(hello, false)
		f.Add(fragmented(hello, 1), true)
		f.Add(fragmented(hello, 100), false)
		f.Add(hello[:len(hello)/2], true)
		f.Add(append(hello[:len(hello):len(hello)], 0x14, 3, 3, 0, 1, 1, 0x17, 3, 3, 0, 1, 0), true)
		for _, name := range []string{"10.0.0.1", "EXAMPLE.COM....", "a\x00b.example.com", "*.example.com", "\xff\xfe"} {
			name += strings.Repeat("x", len("www.example.com"))
			f.Add([]byte(strings.Replace(string(hello), "www.example.com", name[:len("www.example.com")], 1)), false)
		}
	}
	for _, seed := range []string{"", "\x16", "\x16\x03", "\x16\x03\x01\xff\xff", "\x16\x03\x01\x00\x00", "\x16\x03\x01\x00\x04\x01\xff\xff\xff", "\x15\x03\x01\x00\x02\x02\x28", "\x80\x2e\x01\x03\x01", "SSH-2.0-x\r\n", "GET "} {
		f.Add([]byte(seed), true)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(echo))
	server.EnableHTTP2 = true
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	f.Cleanup(server.Close)
	b := newBench(f, benchConfig{upstream: server, policy: policy.Policy{Deny: parsed(f, "denied.example.com")}})
	f.Fuzz(func(t *testing.T, first []byte, named bool) {
		conn := b.dialFor(t, map[bool]string{true: "www.example.com:443", false: "1.2.3.4:443"}[named])
		defer conn.Close()
		_, _ = conn.Write(first) // the proxy may have ended it
		_ = conn.CloseWrite()
		_, _ = io.Copy(io.Discard, conn)
		conn.Close()
		b.settle(t)
		b.checkForwarded(t, nil)
		if named && len(events[audit.TLSFailure](b.recorder)) > 0 && events[audit.FlowOpen](b.recorder)[0].Host != "www.example.com" {
			t.Errorf("a flow to another host is recorded: %+v", b.recorder.events)
		}
	})
}
