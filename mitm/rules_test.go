package mitm

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"agentops/audit"
	"agentops/mitm/policy"
)

func parsed(t testing.TB, texts ...string) []policy.Rule {
	t.Helper()
	rules, err := policy.ParseRules(texts)
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

// What was allowed a hundred times says nothing of the next request: each is
// judged by its own method and path, over HTTP/1 and HTTP/2.
func TestEveryRequestIsJudgedByMethodAndPath(t *testing.T) {
	b := newBench(t, benchConfig{
		upstream: upstream(t, true, func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasPrefix(r.URL.Path, "/api/") || r.Method != "GET" {
				t.Errorf("the upstream got %s %s", r.Method, r.RequestURI)
			}
			fmt.Fprint(w, r.RequestURI)
		}),
		policy: policy.Policy{Mode: policy.Strict, Allow: parsed(t, "GET www.example.com/api/**")},
	})
	var forwarded []string
	for _, protocol := range []string{"h1", "h2"} {
		client := b.client(protocol)
		for i := range 100 {
			url := fmt.Sprintf("https://www.example.com/api/%d%%7e(x)", i)
			res, body := b.get(client, url)
			if res.StatusCode != 200 || "https://www.example.com"+body != url {
				t.Fatalf("request %d: %d %s", i, res.StatusCode, body)
			}
			forwarded = append(forwarded, url)
		}
		for _, c := range []struct{ method, path, override, reason string }{
			{"GET", "/other", "", "not-allowed"},
			{"POST", "/api/1", "", "not-allowed"},
			{"GET", "/api/1", "delete", "not-allowed"},
			{"GET", "/api/%2e%2e/other", "", "malformed"},
			{"GET", "/api/..%2fother", "", "malformed"},
			{"GET", "/api/..;/other", "", "malformed"},
			{"GET", "/api//other", "", "malformed"},
			{"GET", "/api/1%2Fother", "", "malformed"},
		} {
			request, err := http.NewRequest(c.method, "https://www.example.com/", http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			request.URL.Opaque = c.path
			if c.override != "" {
				request.Header.Set("X-HTTP-Method-Override", c.override)
			}
			res, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			if problem := problemOf(t, res); res.StatusCode != 403 || problem["reason"] != c.reason || problem["type"] != "urn:agentops:refused:"+c.reason || problem["hint"] == nil {
				t.Errorf("%s %s %s: %d %v", protocol, c.method, c.path, res.StatusCode, problem)
			}
		}
		client.CloseIdleConnections()
	}
	b.stop()
	if n := len(events[audit.FlowOpen](b.recorder)); n != 2 {
		t.Errorf("%d connections were made, want one of each version", n)
	}
	requests := events[audit.HTTPRequest](b.recorder)
	if len(requests) != len(forwarded) {
		t.Fatalf("%d requests recorded, %d forwarded", len(requests), len(forwarded))
	}
	for i, r := range requests {
		if r.URL != forwarded[i] {
			t.Errorf("%q is recorded, %q was forwarded", r.URL, forwarded[i])
		}
	}
}

// In permissive, a request that is denied cannot be sent as something that is no
// HTTP to the proxy, and is to the server.
func TestADeniedPathIsNoOpaqueFlow(t *testing.T) {
	b := newBench(t, benchConfig{
		upstream: plain(t, func(http.ResponseWriter, *http.Request) { t.Error("the upstream was reached") }),
		policy:   policy.Policy{Deny: parsed(t, "www.example.com/admin/**")},
	})
	conn := b.dial("www.example.com:80")
	io.WriteString(conn, "\r\nGET /admin/x HTTP/1.1\r\nHost: www.example.com\r\n\r\n")
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("it ended with %v, want a reset", err)
	}
	b.stop()
	if refused := events[audit.Refused](b.recorder); len(refused) != 1 || refused[0].Reason != "opaque" || refused[0].Rule != "www.example.com/admin/**" {
		t.Errorf("recorded %+v", refused)
	}
}

// tcp: lets anything pass in strict: a server that speaks first, and HTTP.
func TestRuleForTCP(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		for {
			conn, err := server.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, "220 hello\r\n")
			conn.Close()
		}
	}()
	b := newBench(t, benchConfig{
		pins:   []string{"mail.example.com=" + server.Addr().String(), "*=" + plain(t, echo).Listener.Addr().String()},
		policy: policy.Policy{Mode: policy.Strict, Allow: parsed(t, "tcp:mail.example.com:25", "tcp:www.example.com:80")},
	})
	line, err := bufio.NewReader(b.dial("mail.example.com:25")).ReadString('\n')
	if err != nil || line != "220 hello\r\n" {
		t.Errorf("%q, %v", line, err)
	}
	if res, _ := b.get(b.client("h1"), "http://www.example.com/x"); res.StatusCode != 200 {
		t.Errorf("HTTP: %d", res.StatusCode)
	}
	other := b.dial("mail.example.com:26")
	io.WriteString(other, "EHLO x\r\n")
	if _, err := other.Read(make([]byte, 1)); err == nil {
		t.Error("another port was reached")
	}
}

// A name that is pinned to, or resolves to, a denied network does not lead there.
func TestDeniedNetworks(t *testing.T) {
	server := plain(t, func(http.ResponseWriter, *http.Request) { t.Error("the upstream was reached") })
	deny := parsed(t, "127.0.0.0/8")
	deny[0] = deny[0].From("/etc/agentops/policy.yaml")
	b := newBench(t, benchConfig{upstream: server, policy: policy.Policy{Deny: deny}})
	res, err := b.client("h1").Get("http://www.example.com/")
	if err != nil {
		t.Fatal(err)
	}
	problem := problemOf(t, res)
	if res.StatusCode != 403 || problem["reason"] != "denied" || problem["rule"] != "127.0.0.0/8" || problem["file"] != "/etc/agentops/policy.yaml" {
		t.Errorf("by a pin: %d %v", res.StatusCode, problem)
	}
	d := NewDialer(nil, &policy.Policy{Allow: parsed(t, "10.1.2.3"), Deny: parsed(t, "10.0.0.0/8")})
	guard, ok := errors.AsType[*GuardError](d.guard(policy.TCP, "10.1.2.3")("tcp", "10.1.2.3:80", nil))
	if !ok || guard.Reason() != policy.Denied {
		t.Errorf("by address: %v", guard)
	}
	if _, ok := errors.AsType[*GuardError](NewDialer(nil, &policy.Policy{Deny: parsed(t, "1.1.1.0/24")}).guard(policy.TCP, "www.example.com")("tcp", "1.1.1.1:80", nil)); !ok {
		t.Error("a name leads to a denied network")
	}
}

func TestCheckSaysWhatDialWouldRefuse(t *testing.T) {
	p := &policy.Policy{Allow: parsed(t, "10.0.0.5:80"), Bound: &policy.Bound{Source: "/p", Allow: parsed(t, "*", "10.0.0.5", "127.0.0.1:81")}}
	pin := func(text string) Pin {
		pin, err := ParsePin(text)
		if err != nil {
			t.Fatal(err)
		}
		return pin
	}
	d := NewDialer([]Pin{pin("a.example=127.0.0.1"), pin("b.example=1.1.1.1")}, p)
	for address, want := range map[string]bool{
		"c.example:80": true, "10.0.0.5:80": true, "10.0.0.5:81": false, "10.0.0.6:80": false, "169.254.169.254:80": false, "1.1.1.1:443": true,
		"a.example:81": true, "a.example:80": false, "b.example:80": false, // pins out of the bound
	} {
		host, port, err := splitAddress(address)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Check(policy.TCP, host, port); (err == nil) != want {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestRefusalsInTheFormThatTheClientTakes(t *testing.T) {
	b := newBench(t, benchConfig{upstream: plain(t, echo), policy: policy.Policy{Mode: policy.Strict, Source: "agent.yaml"}})
	for accept, want := range map[string]string{
		"":                             "application/problem+json",
		"*/*":                          "application/problem+json",
		"application/json":             "application/problem+json",
		"text/html, */*;q=0.8":         "application/problem+json",
		"application/json, text/plain": "application/problem+json",
		"text/plain":                   "text/plain; charset=utf-8",
		"TEXT/*;q=0.5, text/html":      "text/plain; charset=utf-8",
		"text/plain, */*; q=0":         "text/plain; charset=utf-8",
		"image/png":                    "application/problem+json",
	} {
		request, err := http.NewRequest("GET", "http://www.example.com/x", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if accept != "" {
			request.Header.Set("Accept", accept)
		}
		res, err := b.client("h1").Do(request)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		text := string(body)
		if res.Header.Get("Content-Type") != want || strings.Count(text, "\n") != 1 || !strings.HasSuffix(text, "\n") ||
			!strings.Contains(text, "no rule allows www.example.com:80") || !strings.Contains(text, "agent run --allow www.example.com:80") || !strings.Contains(text, "agent.yaml") {
			t.Errorf("Accept: %s gets %s: %s", accept, res.Header.Get("Content-Type"), text)
		}
	}
}

// Whatever a name is written as, it is one; what is another, or no name at all, is
// refused: in the SNI, in Host and in :authority, against the address that was
// dialled.
func TestSpellingsOfNames(t *testing.T) {
	b := newBench(t, benchConfig{
		upstream: upstream(t, true, echo), pins: []string{"1.2.3.4=127.0.0.1:1"},
		policy: policy.Policy{Mode: policy.Strict, Allow: parsed(t, "www.example.com", "bücher.example.com", "1.2.3.4")},
	})
	for _, c := range []struct{ dialled, sni, host, reason string }{
		{"www.example.com", "www.example.com", "WWW.Example.Com.", ""},
		{"www.example.com", "WWW.EXAMPLE.COM", "www.example.com:443", ""},
		{"www.example.com", "", "www.example.com", ""},
		{"xn--bcher-kva.example.com", "XN--BCHER-KVA.example.com", "xn--BCHER-kva.example.com.", ""},
		{"www.example.com", "www.example.com", "www.example.com..", "malformed"},
		{"www.example.com", "www.example.com", "www.example.com%2e", "malformed"},
		{"www.example.com", "www.example.com", "user@www.example.com", "malformed"},
		{"www.example.com", "www.example.com", "www.example.com:444", "fronting"},
		{"www.example.com", "www.example.com", "www.example.com:0443", "fronting"},
		{"www.example.com", "www.example.com", "other.example.com", "fronting"},
		{"www.example.com", "other.example.com", "www.example.com", "fronting"},
		{"www.example.com", "www.example.com", "1.2.3.4", "fronting"},
		{"www.example.com", "www.example.com", "0x01020304", "malformed"},
		{"www.example.com", "www.example.com", "16909060", "malformed"},
		{"1.2.3.4", "", "[::ffff:1.2.3.4]", "502"}, // one form, and nobody is there
		{"1.2.3.4", "", "1.2.3.4", "502"},
		{"1.2.3.4", "", "1.2.772", "malformed"},
		{"1.2.3.4", "", "01.02.03.04", "malformed"},
		{"1.2.3.4", "", "[fe80::1%25lo]", "malformed"},
		{"1.2.3.4", "", "www.example.com", "fronting"}, // the certificate was for the address
	} {
		for _, protocol := range []string{alpnHTTP1, alpnHTTP2} {
			dialled := c.dialled + ":443"
			if _, err := netip.ParseAddr(c.dialled); err != nil {
				dialled = b.destination(dialled).String()
			}
			conn := tls.Client(b.dial(dialled), &tls.Config{RootCAs: b.roots, ServerName: c.sni, InsecureSkipVerify: true, NextProtos: []string{protocol}})
			res, err := exchangeOn(conn, protocol, c.host)
			if err != nil {
				if protocol == alpnHTTP1 || c.reason != "malformed" { // HTTP/2 has none of these
					t.Errorf("%+v over %s: %v", c, protocol, err)
				}
				continue
			}
			got := map[int]string{http.StatusBadGateway: "502", http.StatusBadRequest: "malformed"}[res.StatusCode]
			if res.StatusCode == http.StatusForbidden {
				got, _ = problemOf(t, res)["reason"].(string)
			}
			if got != c.reason {
				t.Errorf("%+v over %s: %d %q", c, protocol, res.StatusCode, got)
			}
			conn.Close()
		}
	}
}

// exchangeOn asks for a host on a connection, in one version of HTTP.
func exchangeOn(conn *tls.Conn, protocol, host string) (*http.Response, error) {
	request, err := http.NewRequest("GET", "https://x.invalid/", http.NoBody)
	if err != nil {
		return nil, err
	}
	if protocol == alpnHTTP1 {
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host)
		return http.ReadResponse(bufio.NewReader(conn), request)
	}
	transport := &http.Transport{
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		Protocols:      new(http.Protocols),
	}
	transport.Protocols.SetHTTP2(true)
	request.Host = host
	return transport.RoundTrip(request)
}
