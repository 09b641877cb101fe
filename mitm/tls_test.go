package mitm

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"agentops/audit"
	"agentops/mitm/policy"
)

// The example of JA4's own description.
func TestJA4(t *testing.T) {
	hello := &tls.ClientHelloInfo{
		SupportedVersions: []uint16{0x1a1a, tls.VersionTLS13, tls.VersionTLS12},
		SupportedProtos:   []string{"h2", "http/1.1"},
		CipherSuites: []uint16{
			0x8a8a, 0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013, 0xc014, 0x009c, 0x009d, 0x002f, 0x0035,
		},
		Extensions: []uint16{
			0x1a1a, 0x001b, 0x0000, 0x0033, 0x0010, 0x4469, 0x0017, 0x002d, 0x000d, 0x0005, 0x0023, 0x0012, 0x002b, 0xff01, 0x000b, 0x000a, 0x0015,
		},
		SignatureSchemes: []tls.SignatureScheme{0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601},
	}
	if got := ja4(hello); got != "t13d1516h2_8daaf6152771_e5627efa2ab1" {
		t.Errorf("got %s", got)
	}
}

func passthrough(t *testing.T, texts ...string) policy.Policy {
	t.Helper()
	var p policy.Policy
	for _, text := range texts {
		rule, err := policy.ParsePassthrough(text)
		if err != nil {
			t.Fatal(err)
		}
		p.Passthrough = append(p.Passthrough, rule)
	}
	return p
}

// certified is a key and a certificate of nobody's but its own.
func certified(t *testing.T, name string, until time.Time) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotBefore: time.Unix(1, 0), NotAfter: until,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// secure is a server with a certificate and what else config says.
func secure(t *testing.T, config *tls.Config) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(echo))
	s.Config.ErrorLog = nil
	s.TLS = config
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func TestPassthroughIsNotOpened(t *testing.T) {
	own := certified(t, "mtls.example.com", time.Now().Add(time.Hour))
	clients := x509.NewCertPool()
	clients.AddCert(own.Leaf)
	protocols := []string{"http/1.1"}
	for i := range 1000 { // a hello of more than is copied at once
		protocols = append(protocols, fmt.Sprintf("protocol-%d", i))
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		server := secure(t, &tls.Config{Certificates: []tls.Certificate{own}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients, MaxVersion: version})
		process := &audit.Process{PID: 7, Comm: "client"}
		b := newBench(t, benchConfig{upstream: server, policy: passthrough(t, "mtls.example.com:443"), process: process})
		config := &tls.Config{RootCAs: b.trusted, ServerName: "mtls.example.com", Certificates: []tls.Certificate{own}, NextProtos: protocols}
		for range 2 {
			raw := b.dial("mtls.example.com:443")
			conn := tls.Client(raw, config)
			io.WriteString(conn, "GET /x HTTP/1.1\r\nHost: mtls.example.com\r\nConnection: close\r\n\r\n")
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			if body, _ := io.ReadAll(res.Body); !strings.HasSuffix(string(body), "/x ") {
				t.Errorf("got %q", body)
			}
			// What is sent to a server that has closed is answered with a reset.
			if _, err := io.ReadAll(conn); err != nil {
				t.Error(err)
			}
			raw.Close()
		}
		b.stop()
		opens, closes := events[audit.FlowOpen](b.recorder), events[audit.FlowClose](b.recorder)
		if len(opens) != 2 || opens[0].Protocol != "tls" || !opens[0].Passthrough || opens[0].SNI != "mtls.example.com" || !strings.HasPrefix(opens[0].JA4, "t13d") || opens[0].Process != process {
			t.Errorf("opened %+v", opens)
		}
		if len(closes) != 2 || closes[0].BytesSent == 0 || closes[0].BytesReceived == 0 || closes[0].Upstream != server.Listener.Addr().String() || closes[0].Error != "" {
			t.Errorf("closed %+v", closes)
		}
		if n := len(events[audit.HTTPRequest](b.recorder)); n > 0 {
			t.Errorf("%d requests were seen", n)
		}
	}
}

// What is not opened must still lead to its name, by name, and be allowed.
func TestPassthroughIsChecked(t *testing.T) {
	server := upstream(t, false, func(http.ResponseWriter, *http.Request) { t.Error("the upstream was reached") })
	narrow := func(mode policy.Mode, allow, deny []string) policy.Policy {
		p := passthrough(t, "www.example.com")
		p.Mode = mode
		var err error
		if p.Allow, err = policy.ParseRules(allow); err != nil {
			t.Fatal(err)
		}
		if p.Deny, err = policy.ParseRules(deny); err != nil {
			t.Fatal(err)
		}
		return p
	}
	for name, c := range map[string]struct {
		policy  policy.Policy
		sni     string
		trusted bool
		reason  string // of the refusal; empty: a failure
	}{
		"another SNI":              {passthrough(t, "www.example.com", "other.example.com"), "other.example.com", true, "fronting"},
		"an untrusted certificate": {passthrough(t, "www.example.com"), "www.example.com", false, ""},
		"not allowed":              {narrow(policy.Strict, nil, nil), "www.example.com", true, "not-allowed"},
		"some requests allowed":    {narrow(policy.Strict, []string{"www.example.com/a"}, nil), "www.example.com", true, "opaque"},
		"some requests denied":     {narrow(policy.Permissive, nil, []string{"www.example.com/a"}), "www.example.com", true, "opaque"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, benchConfig{upstream: server, policy: c.policy})
			if !c.trusted {
				b.distrust()
			}
			roots := x509.NewCertPool()
			roots.AddCert(server.Certificate())
			conn := tls.Client(b.dial("www.example.com:443"), &tls.Config{RootCAs: roots, ServerName: c.sni})
			if err := conn.Handshake(); err == nil {
				t.Error("the handshake was completed")
			}
			conn.Close()
			b.stop()
			refused, failed := events[audit.Refused](b.recorder), events[audit.TLSFailure](b.recorder)
			if c.reason == "" {
				if len(failed) != 1 || failed[0].Side != "upstream" || !strings.Contains(failed[0].Error, "--upstream-ca") {
					t.Errorf("recorded %+v", failed)
				}
				return
			}
			if len(refused) != 1 || refused[0].Reason != c.reason {
				t.Errorf("recorded %+v", refused)
			}
		})
	}
}

func TestUpstreamErrorsAreToldWithAReason(t *testing.T) {
	good := time.Now().Add(time.Hour)
	closed := httptest.NewServer(nil)
	closed.Close()
	for name, c := range map[string]struct {
		config *tls.Config
		trust  bool
		want   string
		hint   string
	}{
		"expired":     {&tls.Config{Certificates: []tls.Certificate{certified(t, "www.example.com", time.Unix(2, 0))}}, true, "certificate-expired", "expired"},
		"self-signed": {&tls.Config{Certificates: []tls.Certificate{certified(t, "www.example.com", good)}}, false, "certificate-untrusted", "--upstream-ca"},
		"wrong name":  {&tls.Config{Certificates: []tls.Certificate{certified(t, "other.example.com", good)}}, true, "certificate-wrong-name", "other.example.com"},
		"client certificate, TLS 1.3": {&tls.Config{
			Certificates: []tls.Certificate{certified(t, "www.example.com", good)}, ClientAuth: tls.RequireAnyClientCert,
		}, true, "client-certificate", "--passthrough www.example.com"},
		"client certificate, TLS 1.2": {&tls.Config{
			Certificates: []tls.Certificate{certified(t, "www.example.com", good)}, ClientAuth: tls.RequireAnyClientCert, MaxVersion: tls.VersionTLS12,
		}, true, "client-certificate", "--passthrough www.example.com"},
		"refused": {nil, false, "connection-refused", "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, protocol := range []string{"h1", "h2"} {
				address := closed.Listener.Addr().String()
				if c.config != nil {
					config := c.config.Clone()
					config.NextProtos = []string{"h2", "http/1.1"}
					address = secure(t, config).Listener.Addr().String()
				}
				b := newBench(t, benchConfig{pins: []string{"*=" + address}})
				if c.trust {
					b.trusted.AddCert(c.config.Certificates[0].Leaf)
				}
				res, err := b.client(protocol).Get("https://www.example.com/")
				if err != nil {
					t.Fatal(err)
				}
				problem := problemOf(t, res)
				if res.StatusCode != 502 || problem["reason"] != c.want || !strings.Contains(fmt.Sprint(problem["detail"]), c.hint) {
					t.Errorf("%s: %d %v", protocol, res.StatusCode, problem)
				}
				b.stop()
			}
		})
	}
	for _, err := range []error{context.DeadlineExceeded, &net.OpError{Op: "dial", Err: context.DeadlineExceeded}} {
		if got := upstreamReason(fmt.Errorf("dial: %w", err)); got != reasonTimeout {
			t.Errorf("%v is %q", err, got)
		}
	}
}

// A client that does not trust us is told of, with its process and what to do.
func TestAClientThatPinsIsRecorded(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		process := &audit.Process{PID: 7, Comm: "pinned"}
		b := newBench(t, benchConfig{upstream: upstream(t, true, echo), process: process})
		conn := tls.Client(b.dial("www.example.com:443"), &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "www.example.com", MaxVersion: version})
		if err := conn.Handshake(); err == nil {
			t.Fatal("the client trusts us")
		}
		await[audit.TLSFailure](t, b.recorder, 1)
		failure := events[audit.TLSFailure](b.recorder)[0]
		if failure.Side != "client" || failure.Process != process || !strings.Contains(failure.Error, "--passthrough www.example.com") {
			t.Errorf("recorded %+v", failure)
		}
	}
}

// chopped writes byte by byte, or cuts the first TLS records into such of one byte.
type chopped struct {
	net.Conn
	records bool // until one is
}

func (c *chopped) Write(p []byte) (int, error) {
	var out []byte
	for rest := p; c.records && len(rest) > 5; {
		n := int(binary.BigEndian.Uint16(rest[3:5]))
		for _, b := range rest[5 : 5+n] {
			out = append(out, rest[0], rest[1], rest[2], 0, 1, b)
		}
		rest = rest[5+n:]
	}
	c.records = false
	if out == nil {
		for i := range p {
			if _, err := c.Conn.Write(p[i : i+1]); err != nil {
				return i, err
			}
		}
		return len(p), nil
	}
	_, err := c.Conn.Write(out)
	return len(p), err
}

func TestClientHellosOfAnyForm(t *testing.T) {
	var large []string
	for i := range 900 {
		large = append(large, fmt.Sprintf("%050d", i))
	}
	for name, c := range map[string]struct {
		address, sni string
		alpn         []string
		wrap         func(net.Conn) net.Conn
		version      uint16
		want         string // that the leaf is for
	}{
		"TLS 1.2":                       {address: "www.example.com:443", sni: "www.example.com", version: tls.VersionTLS12, want: "www.example.com"},
		"in segments of one byte":       {address: "www.example.com:443", sni: "www.example.com", wrap: func(c net.Conn) net.Conn { return &chopped{c, false} }, want: "www.example.com"},
		"in records of one byte":        {address: "www.example.com:443", sni: "www.example.com", wrap: func(c net.Conn) net.Conn { return &chopped{c, true} }, version: tls.VersionTLS12, want: "www.example.com"},
		"46 kB":                         {address: "www.example.com:443", sni: "www.example.com", alpn: append(large, "http/1.1"), want: "www.example.com"},
		"no SNI, behind a name":         {address: "www.example.com:443", want: "www.example.com"},
		"no SNI, an address":            {address: "203.0.113.7:443", want: "203.0.113.7"},
		"no SNI, an IPv6 address":       {address: "[2001:db8::7]:443", want: "2001:db8::7"},
		"SNI at an address":             {address: "203.0.113.7:443", sni: "www.example.com", want: "www.example.com"},
		"SNI in capitals with last dot": {address: "www.example.com:443", sni: "WWW.Example.COM", want: "www.example.com"},
	} {
		t.Run(name, func(t *testing.T) {
			server := upstream(t, false, echo)
			b := newBench(t, benchConfig{upstream: server})
			var conn net.Conn = b.dial(c.address)
			if c.wrap != nil {
				conn = c.wrap(conn)
			}
			client := tls.Client(conn, &tls.Config{ServerName: c.sni, NextProtos: c.alpn, MaxVersion: c.version, InsecureSkipVerify: true})
			if err := client.Handshake(); err != nil {
				t.Fatal(err)
			}
			leaf := client.ConnectionState().PeerCertificates[0]
			if _, err := leaf.Verify(x509.VerifyOptions{DNSName: c.want, Roots: b.roots}); err != nil {
				t.Error(err)
			}
			client.Close()
			b.stop()
			if opens := events[audit.FlowOpen](b.recorder); len(opens) != 1 || opens[0].SNI != c.sni || opens[0].JA4 == "" || opens[0].Passthrough {
				t.Errorf("opened %+v", opens)
			}
		})
	}
}

func TestSessionsAreResumedOnBothSides(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		resumed := make(chan bool, 2)
		server := upstream(t, false, func(_ http.ResponseWriter, r *http.Request) { resumed <- r.TLS.DidResume })
		server.Config.SetKeepAlivesEnabled(false)
		b := newBench(t, benchConfig{upstream: server})
		config := &tls.Config{RootCAs: b.roots, ServerName: "www.example.com", MaxVersion: version, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
		for i := range 2 {
			conn := tls.Client(b.dial("www.example.com:443"), config)
			io.WriteString(conn, "GET / HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n")
			if _, err := io.ReadAll(conn); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatal(err)
			}
			if got := conn.ConnectionState().DidResume; got != (i > 0) {
				t.Errorf("connection %d was resumed by the client: %v", i, got)
			}
			if got := <-resumed; got != (i > 0) {
				t.Errorf("connection %d was resumed by the proxy: %v", i, got)
			}
			conn.Close()
		}
		// Another name is no way in by a session of the first.
		config.ServerName = "other.example.com"
		conn := tls.Client(b.dial("www.example.com:443"), config)
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n")
		if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.StatusCode != 403 {
			t.Errorf("another SNI: %v, %v", res, err)
		}
	}
}
