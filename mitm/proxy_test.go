package mitm

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"agentops/audit"
	"agentops/mitm/authority"
	"agentops/mitm/policy"
	"agentops/mitm/resolver"

	"github.com/sirupsen/logrus"
)

// recorder keeps events in memory; full makes it fail.
type recorder struct {
	mu      sync.Mutex
	events  []audit.Event
	full    bool
	changed chan struct{} // closed and made anew with every event
}

func (r *recorder) Append(e audit.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.full {
		return errors.New("disk full")
	}
	r.events = append(r.events, e)
	close(r.changed)
	r.changed = make(chan struct{})
	return nil
}

// await returns once n events of a type are there.
func await[E audit.Event](t *testing.T, r *recorder, n int) {
	t.Helper()
	for {
		r.mu.Lock()
		changed := r.changed
		r.mu.Unlock()
		if len(events[E](r)) >= n {
			return
		}
		select {
		case <-changed:
		case <-t.Context().Done():
			t.Fatal("the events did not come")
		}
	}
}

// events returns those of one type, in order.
func events[E audit.Event](r *recorder) []E {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []E
	for _, e := range r.events {
		if e, ok := e.(E); ok {
			found = append(found, e)
		}
	}
	return found
}

// redirected is a listener whose connections seem to have been dialled to
// anywhere, as those of a run's namespace are.
type redirected struct {
	*net.TCPListener
	mu           sync.Mutex
	destinations chan netip.AddrPort
}

type redirectedConn struct {
	*net.TCPConn
	destination netip.AddrPort
}

func (c *redirectedConn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.destination) }

func (l *redirected) Accept() (net.Conn, error) {
	conn, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	return &redirectedConn{conn, <-l.destinations}, nil
}

func (l *redirected) dial(ctx context.Context, destination netip.AddrPort) (*net.TCPConn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		return nil, err
	}
	l.destinations <- destination
	return conn.(*net.TCPConn), nil
}

// bench is a proxy with one upstream behind every name.
type bench struct {
	t        testing.TB
	listener *redirected
	recorder *recorder
	names    *resolver.Names
	roots    *x509.CertPool // what a client inside trusts
	trust    sync.Mutex
	trusted  *x509.CertPool // upstream
	proxy    *Proxy
	late     []request // recorded, and not seen by the upstream so far
	stop     func()    // ends the proxy and waits
}

type benchConfig struct {
	policy   policy.Policy
	pins     []string
	upstream *httptest.Server // pinned to every name, and trusted
	process  *audit.Process   // that has made every connection
	grants   []Grant
	limits   Limits
	resolver *net.Resolver // of the dialer
	wake     time.Duration
}

func newBench(t testing.TB, c benchConfig) *bench {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{
		t: t, recorder: &recorder{changed: make(chan struct{})}, names: resolver.NewNames(), roots: x509.NewCertPool(),
		listener: &redirected{TCPListener: tcp.(*net.TCPListener), destinations: make(chan netip.AddrPort, 100)},
	}
	ca, err := authority.New("test")
	if err != nil {
		t.Fatal(err)
	}
	b.roots.AppendCertsFromPEM(ca.PEM())
	b.trusted = x509.NewCertPool()
	if c.upstream != nil {
		c.pins = append(c.pins, "*="+c.upstream.Listener.Addr().String())
		if c.upstream.TLS != nil {
			b.trusted.AddCert(c.upstream.Certificate())
		}
	}
	var pins []Pin
	for _, text := range c.pins {
		pin, err := ParsePin(text)
		if err != nil {
			t.Fatal(err)
		}
		pins = append(pins, pin)
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	log.SetLevel(logrus.DebugLevel)
	dialer := NewDialer(pins, &c.policy)
	if c.resolver != nil {
		dialer.resolver = c.resolver
	}
	p := New(Config{
		Policy: &c.policy, Authority: ca, Names: b.names, Dialer: dialer,
		Upstreams: b.upstreamRoots, Recorder: b.recorder, Log: log, Limits: c.limits,
		Owner:  func(netip.AddrPort, netip.AddrPort) *audit.Process { return c.process },
		Sender: func(netip.AddrPort, netip.AddrPort) *audit.Process { return c.process },
		Grants: c.grants,
	})
	b.proxy = p
	p.limits.wake = cmp.Or(c.wake, p.limits.wake)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx, b.listener) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(b.stop)
	return b
}

// destination is where a client inside would dial a URL's host: the name's
// synthetic address.
func (b *bench) destination(address string) netip.AddrPort {
	if ap, err := netip.ParseAddrPort(address); err == nil {
		return ap
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		b.t.Fatal(err)
	}
	v4, _, err := b.names.Addresses(host)
	if err != nil {
		b.t.Fatal(err)
	}
	return netip.MustParseAddrPort(v4.String() + ":" + port)
}

func (b *bench) dial(address string) *net.TCPConn {
	b.t.Helper()
	conn, err := b.listener.dial(b.t.Context(), b.destination(address))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { conn.Close() })
	return conn
}

func (b *bench) client(protocols ...string) *http.Client {
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return b.listener.dial(ctx, b.destination(address))
		},
		TLSClientConfig:    &tls.Config{RootCAs: b.roots},
		DisableCompression: true,
		Protocols:          new(http.Protocols),
	}
	t.Protocols.SetHTTP1(true)
	for _, p := range protocols {
		t.Protocols.SetHTTP2(p == "h2")
		t.Protocols.SetUnencryptedHTTP2(p == "h2c")
		t.Protocols.SetHTTP1(p != "h2c")
	}
	b.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t}
}

func (b *bench) get(client *http.Client, url string) (*http.Response, string) {
	b.t.Helper()
	res, err := client.Get(url)
	if err != nil {
		b.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return res, string(body)
}

// upstreamRoots are those that upstreams are verified against.
func (b *bench) upstreamRoots() *x509.CertPool {
	b.trust.Lock()
	defer b.trust.Unlock()
	return b.trusted
}

// distrust leaves the proxy without any.
func (b *bench) distrust() {
	b.trust.Lock()
	defer b.trust.Unlock()
	b.trusted = x509.NewCertPool()
}

// upstream is a TLS server for any name of example.com.
func upstream(t testing.TB, http2 bool, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(handler)
	s.EnableHTTP2 = http2
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func plain(t *testing.T, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	return unencrypted(t, handler)
}

func unencrypted(t testing.TB, handler http.HandlerFunc) *httptest.Server {
	s := httptest.NewUnstartedServer(handler)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func echo(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	fmt.Fprintf(w, "%s %s %s %s", r.Proto, r.Host, r.RequestURI, body)
}

func TestHTTPIsRelayedAndRecorded(t *testing.T) {
	for _, c := range []struct {
		name          string
		upstream      func(*testing.T, http.HandlerFunc) *httptest.Server
		client        string
		url           string
		proto, schema string
	}{
		{"https over HTTP/1.1", func(t *testing.T, h http.HandlerFunc) *httptest.Server { return upstream(t, true, h) }, "h1", "https://www.example.com/a", "HTTP/1.1", "tls"},
		{"https over HTTP/2", func(t *testing.T, h http.HandlerFunc) *httptest.Server { return upstream(t, true, h) }, "h2", "https://www.example.com/a", "HTTP/2.0", "tls"},
		{"https, an upstream without HTTP/2", func(t *testing.T, h http.HandlerFunc) *httptest.Server { return upstream(t, false, h) }, "h2", "https://www.example.com:8443/a", "HTTP/1.1", "tls"},
		{"http", plain, "h1", "http://www.example.com/a", "HTTP/1.1", "http"},
		{"HTTP/2 by prior knowledge", plain, "h2c", "http://www.example.com:8080/a", "HTTP/2.0", "http"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, benchConfig{upstream: c.upstream(t, echo)})
			client := b.client(c.client)
			for range 3 {
				res, err := client.Post(c.url+"?q=1&token=hush", "text/plain", strings.NewReader("hello"))
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(res.Body)
				if err != nil {
					t.Fatal(err)
				}
				res.Body.Close()
				want := fmt.Sprintf("%s %s /a?q=1&token=hush hello", c.proto, res.Request.URL.Host)
				if string(body) != want || res.Proto != c.proto {
					t.Fatalf("got %q over %s, want %q", body, res.Proto, want)
				}
			}
			client.CloseIdleConnections()
			b.stop()
			requests := events[audit.HTTPRequest](b.recorder)
			if len(requests) != 3 {
				t.Fatalf("%d requests recorded, made 3", len(requests))
			}
			r := requests[0]
			if r.URL != c.url+"?q=1&token=[redacted]" || r.Method != "POST" || r.Status != 200 || r.Protocol != c.proto || r.BytesSent != 5 || r.BytesReceived == 0 || r.Upstream == "" || r.Error != "" {
				t.Errorf("recorded %+v", r)
			}
			opens, closes := events[audit.FlowOpen](b.recorder), events[audit.FlowClose](b.recorder)
			if len(opens) != 1 || len(closes) != 1 || opens[0].Protocol != c.schema || opens[0].Host != "www.example.com" || closes[0].BytesSent == 0 {
				t.Errorf("flows %+v, %+v", opens, closes)
			}
		})
	}
}

// Signatures are over the bytes of a request, so they must pass as they are.
func TestRequestsPassUnchanged(t *testing.T) {
	var seen bytes.Buffer
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		conn, err := raw.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		reader := bufio.NewReader(io.TeeReader(conn, &seen))
		if _, err := http.ReadRequest(reader); err != nil {
			t.Error(err)
		}
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n<a/>")
	})
	b := newBench(t, benchConfig{pins: []string{"*=" + raw.Addr().String()}})
	conn := b.dial("www.example.com:80")
	request := "GET /a%2Fb/%7Ec/../d//e'(x)|^[]?b=2&a=%20;&c HTTP/1.1\r\nHost: WWW.example.com\r\nX-Forwarded-For: 10.0.0.1\r\nAccept: */*\r\n\r\n"
	io.WriteString(conn, request)
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	for _, name := range []string{"Date", "Content-Type"} {
		if res.Header.Get(name) != "" {
			t.Errorf("the response has gained %s", name)
		}
	}
	got := strings.Split(strings.TrimSpace(seen.String()), "\r\n")
	want := strings.Split(strings.TrimSpace(request), "\r\n")
	if got[0] != want[0] || got[1] != want[1] || len(got) != len(want) {
		t.Errorf("the upstream got %q, the client sent %q", got, want)
	}
}

// problemOf reads a refusal.
func problemOf(t *testing.T, res *http.Response) map[string]any {
	t.Helper()
	defer res.Body.Close()
	var problem map[string]any
	if err := json.NewDecoder(res.Body).Decode(&problem); err != nil {
		t.Fatal(err)
	}
	return problem
}

func TestRefusalsSayWhyAndReachNobody(t *testing.T) {
	server := upstream(t, true, func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "allowed.example.com" {
			t.Errorf("the upstream got a request for %s", r.Host)
		}
	})
	rules, err := policy.ParseRules([]string{"allowed.example.com:443"})
	if err != nil {
		t.Fatal(err)
	}
	deny, err := policy.ParseRules([]string{"*.evil.example"})
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t, benchConfig{upstream: server, policy: policy.Policy{Mode: policy.Strict, Allow: rules, Deny: deny}})
	for _, protocol := range []string{"h1", "h2"} {
		client := b.client(protocol)
		for url, want := range map[string][2]string{
			"https://other.example.com/x":       {"not-allowed", ""},
			"https://a.evil.example/x":          {"denied", "*.evil.example"},
			"http://allowed.example.com/x":      {"not-allowed", ""}, // port 80
			"https://allowed.example.com:444/x": {"not-allowed", ""},
			"https://203.0.113.9/x":             {"not-allowed", ""},
		} {
			res, err := client.Get(url)
			if err != nil {
				t.Fatalf("%s: %v", url, err)
			}
			problem := problemOf(t, res)
			rule, _ := problem["rule"].(string)
			if res.StatusCode != 403 || problem["reason"] != want[0] || rule != want[1] || res.Header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("%s: %d %v", url, res.StatusCode, problem)
			}
		}
		if res, _ := b.get(client, "https://allowed.example.com/x"); res.StatusCode != 200 {
			t.Errorf("the allowed host: %d", res.StatusCode)
		}
		client.CloseIdleConnections()
	}
	b.stop()
	refused := events[audit.Refused](b.recorder)
	if len(refused) != 10 {
		t.Errorf("%d refusals recorded, want 10", len(refused))
	}
	for _, r := range refused {
		if r.Method != "GET" || r.URL == "" || r.Reason == "" || r.Flow == 0 {
			t.Errorf("recorded %+v", r)
		}
	}
	if n := len(events[audit.HTTPRequest](b.recorder)); n != 2 {
		t.Errorf("%d requests recorded, want 2", n)
	}
}

func TestNamesMustAgree(t *testing.T) {
	b := newBench(t, benchConfig{upstream: upstream(t, true, func(_ http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(strings.ToLower(r.Host), "www.example.com") {
			t.Errorf("the upstream got a request for %s", r.Host)
		}
	})})
	for name, c := range map[string]struct {
		sni   string
		hosts []string // of requests on one connection
		want  []int
	}{
		"they agree":           {"www.example.com", []string{"www.example.com", "WWW.EXAMPLE.COM.:443"}, []int{200, 200}},
		"Host of another":      {"www.example.com", []string{"other.example.com"}, []int{403}},
		"second Host":          {"www.example.com", []string{"www.example.com", "other.example.com"}, []int{200, 403}},
		"SNI of another":       {"other.example.com", []string{"www.example.com"}, []int{403}},
		"both of another":      {"other.example.com", []string{"other.example.com"}, []int{403}},
		"Host at another port": {"www.example.com", []string{"www.example.com:8443"}, []int{403}},
	} {
		t.Run(name, func(t *testing.T) {
			conn := tls.Client(b.dial("www.example.com:443"), &tls.Config{RootCAs: b.roots, ServerName: c.sni})
			defer conn.Close()
			reader := bufio.NewReader(conn)
			for i, host := range c.hosts {
				fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host)
				res, err := http.ReadResponse(reader, nil)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(res.Body)
				if res.StatusCode != c.want[i] || c.want[i] == 403 && !bytes.Contains(body, []byte(`"fronting"`)) {
					t.Errorf("request %d for %s: %d %s, want %d", i, host, res.StatusCode, body, c.want[i])
				}
			}
		})
	}
}

// The name is dialled, whatever address the client dialled: an allowed name at
// an attacker's address leads to the name.
func TestTheNameIsDialledNotTheAddress(t *testing.T) {
	b := newBench(t, benchConfig{pins: []string{"www.example.com=" + plain(t, echo).Listener.Addr().String()}})
	conn := b.dial("203.0.113.66:80")
	fmt.Fprintf(conn, "GET /x HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != 200 {
		t.Errorf("status %d", res.StatusCode)
	}
}

// Nothing is pinned: the guard alone stands before the listener, which is on
// loopback.
func TestTheGuardStandsBeforeLoopback(t *testing.T) {
	server := plain(t, func(http.ResponseWriter, *http.Request) { t.Error("the guard was passed") })
	b := newBench(t, benchConfig{})
	address := server.Listener.Addr().String()
	res, err := b.client().Get("http://" + address + "/")
	if err != nil {
		t.Fatal(err)
	}
	if problem := problemOf(t, res); res.StatusCode != 403 || problem["reason"] != "address" {
		t.Errorf("%d %v", res.StatusCode, problem)
	}
	// An opaque flow to the same place, and an address that is nobody's.
	for _, to := range []string{address, "198.18.77.77:22"} {
		conn := b.dial(to)
		conn.Write([]byte{0, 1, 2, 3})
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("an opaque flow to %s: %v, want a reset", to, err)
		}
	}
	b.stop()
	if n := len(events[audit.Refused](b.recorder)); n != 3 {
		t.Errorf("%d refusals recorded, want 3: %+v", n, b.recorder.events)
	}
}

func TestWhatCannotBeRecordedIsNotForwarded(t *testing.T) {
	b := newBench(t, benchConfig{upstream: plain(t, func(http.ResponseWriter, *http.Request) { t.Error("a request was forwarded") })})
	b.recorder.mu.Lock()
	b.recorder.full = true
	b.recorder.mu.Unlock()
	if res, err := b.client().Get("http://www.example.com/"); err == nil {
		t.Errorf("status %d", res.StatusCode)
	}
	conn := b.dial("www.example.com:22")
	conn.Write([]byte("SSH-2.0-x\r\n"))
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("an opaque flow was forwarded")
	}
}

func TestTLSFailuresOfBothSides(t *testing.T) {
	other := upstream(t, false, echo) // its certificate is not among the roots
	b := newBench(t, benchConfig{pins: []string{"*=" + other.Listener.Addr().String()}})
	res, err := b.client("h2").Get("https://www.example.com/")
	if err != nil {
		t.Fatal(err)
	}
	if problem := problemOf(t, res); res.StatusCode != 502 || !strings.Contains(problem["detail"].(string), "--upstream-ca") {
		t.Errorf("%d %v", res.StatusCode, problem)
	}
	conn := tls.Client(b.dial("www.example.com:443"), &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "www.example.com"})
	if err := conn.Handshake(); err == nil {
		t.Error("a client without the authority was content")
	}
	await[audit.TLSFailure](t, b.recorder, 2)
	conn.Close()
	b.stop()
	sides := map[string]string{}
	for _, f := range events[audit.TLSFailure](b.recorder) {
		sides[f.Side] = f.Error
	}
	if !strings.Contains(sides["upstream"], "unknown authority") || !strings.Contains(sides["client"], "does not trust") {
		t.Errorf("recorded %q", sides)
	}
}

// At the limit others go on, and a new flow is refused with a record.
func TestTooManyFlowsAreRefused(t *testing.T) {
	b := newBench(t, benchConfig{upstream: plain(t, echo), limits: Limits{Flows: 2}})
	clients := []*http.Client{b.client(), b.client()}
	for _, client := range clients {
		b.get(client, "http://www.example.com/")
	}
	conn := b.dial("www.example.com:80")
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read: %v, want a reset", err)
	}
	await[audit.FlowClose](t, b.recorder, 1)
	if refused := events[audit.Refused](b.recorder); len(refused) != 1 || refused[0].Reason != "limit" || refused[0].Flow != 3 {
		t.Errorf("recorded %+v", refused)
	}
	b.get(clients[0], "http://www.example.com/")
	clients[1].CloseIdleConnections()
	await[audit.FlowClose](t, b.recorder, 2)
	b.get(b.client(), "http://www.example.com/")
}

// Every protocol with a greeting passes in strict by its rule, to the byte.
func TestServersThatGreetPassByTheirRule(t *testing.T) {
	for port, greeting := range map[string]string{"22": "SSH-2.0-x\r\n", "25": "220 x\r\n", "3306": "\x4a\x00\x00\x00\x0a8.0\x00", "7000": "hi\n"} {
		rules, err := policy.ParseRules([]string{"tcp:db.example.com:" + port})
		if err != nil {
			t.Fatal(err)
		}
		address := tcpServer(t, func(conn net.Conn) {
			io.WriteString(conn, greeting)
			io.Copy(conn, conn)
		})
		b := newBench(t, benchConfig{pins: []string{"*=" + address}, policy: policy.Policy{Mode: policy.Strict, Allow: rules}})
		conn := b.dial("db.example.com:" + port)
		got := make([]byte, len(greeting))
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != greeting {
			t.Errorf("port %s: %q, %v", port, got, err)
		}
		// What follows may look like anything, as MySQL's TLS does.
		io.WriteString(conn, "\x16\x03\x01GET / HTTP/1.1\r\n")
		conn.CloseWrite()
		if rest, err := io.ReadAll(conn); err != nil || string(rest) != "\x16\x03\x01GET / HTTP/1.1\r\n" {
			t.Errorf("port %s: %q, %v", port, rest, err)
		}
		b.stop()
		if opens := events[audit.FlowOpen](b.recorder); len(opens) != 1 || opens[0].Protocol != "opaque" {
			t.Errorf("port %s: %+v", port, opens)
		}
	}
}

// PostgreSQL's own TLS begins behind an exchange in the clear, which makes it opaque.
func TestPostgreSQLPassesByItsRule(t *testing.T) {
	const request, yes = "\x00\x00\x00\x08\x04\xd2\x16\x2f", "S"
	rules, err := policy.ParseRules([]string{"tcp:db.example.com:5432"})
	if err != nil {
		t.Fatal(err)
	}
	address := tcpServer(t, func(conn net.Conn) {
		if _, err := io.ReadFull(conn, make([]byte, len(request))); err == nil {
			io.WriteString(conn, yes)
			io.Copy(conn, conn)
		}
	})
	b := newBench(t, benchConfig{pins: []string{"*=" + address}, policy: policy.Policy{Mode: policy.Strict, Allow: rules}})
	conn := b.dial("db.example.com:5432")
	io.WriteString(conn, request)
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "\x16\x03\x01")
	conn.CloseWrite()
	if rest, err := io.ReadAll(conn); err != nil || string(rest) != "\x16\x03\x01" {
		t.Errorf("got %q, %v", rest, err)
	}
}
