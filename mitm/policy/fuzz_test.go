package policy_test

import (
	"bufio"
	"net/http"
	"net/url"
	"path"
	"strings"
	"testing"

	"agentops/mitm/policy"
)

func FuzzHost(f *testing.F) {
	for _, seed := range []string{
		"example.com.", "EXAMPLE.com", "xn--exmple-cua.com", "[::1]", "::ffff:1.2.3.4", "127.1", "0x7f000001", "[::1%25eth0]", "[127.0.0.1]",
		"a.0X7f", "b\u00fccher.example\u3002", "a\x00b", "ｅxample．com", "*.a",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		host, err := policy.Host(text)
		if err != nil {
			return
		}
		again, err := policy.Host(host)
		if err != nil || again != host {
			t.Errorf("%q is %q, which is %q, %v", text, host, again, err)
		}
	})
}

// What is read of a rule is what its text says, and a rule never names more than
// its host: nothing hostile in a rule makes it match everything.
func FuzzParseRule(f *testing.F) {
	for _, seed := range []string{
		"example.com", "*.example.com:80,8000-8999", "*", "10.0.0.0/8:22", "[2001:db8::/32]:443", "tcp:db:5432", "udp:[::1]:123",
		"GET,HEAD example.com/api/** /v1/*/items", "10.0.0.5 /24", "POST 10.0.0.0/8:443/x", "[::1]/x", "http://x/", "a /", "GET", "tcp:udp:x:1",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		rule, err := policy.ParseRule(text)
		if err != nil {
			return
		}
		again, err := policy.ParseRule(rule.String())
		if err != nil || again.String() != rule.String() {
			t.Errorf("%q is %q, which is %q, %v", text, rule, again, err)
		}
		p := &policy.Policy{Mode: policy.Strict, Allow: []policy.Rule{rule}}
		named := p.DecideHost("not-in-any-seed.test").Allowed
		if named && !strings.Contains(text, "*") && !strings.Contains(text, "not-in-any-seed.test") {
			t.Errorf("%q names a host that is not in it", text)
		}
		p = &policy.Policy{Allow: nil, Deny: []policy.Rule{rule}}
		if got := p.Decide(policy.Target{Host: "not-in-any-seed.test", Port: 1, Protocol: policy.UDP}); !got.Allowed && got.Rule != "" && !named && got.Reason != policy.Opaque {
			t.Errorf("%q denies a host that it does not allow: %+v", text, got)
		}
	})
}

// A path that a rule allows means the same to who decides, to the server, and in
// the record: net/http's mux serves it as it is, and the URL in the journal, which
// is made of the path's bytes, is read as the same path.
func FuzzPath(f *testing.F) {
	for _, seed := range []string{
		"/", "/a/b", "/a%20b/%C3%A4", "/a//b", "/a/../b", "/a/%2e%2e/b", "/a%2Fb", "/a%5cb", "/a;x/b", "/%252e", "/%u0061", "/%c0%ae", "/a\x00", "*",
		"/a?b", "/a#b", "/ä", "/(a)*'|^[]", "/%2A", "/a/", "//a", "/.../x", "/a%", "/\u0085",
	} {
		f.Add(seed)
	}
	all := policy.Policy{Mode: policy.Strict, Allow: rules(f, "example.com/**")}
	none := policy.Policy{Deny: rules(f, "example.com/**")}
	f.Fuzz(func(t *testing.T, raw string) {
		target := policy.Target{Host: "example.com", Port: 80, Protocol: policy.HTTP, Method: "GET", Path: raw}
		if raw != "" && none.Decide(target).Allowed {
			t.Errorf("%q is none of the paths that are all denied", raw)
		}
		if raw == "" || !all.Decide(target).Allowed {
			return
		}
		normal, err := policy.Path(raw)
		if err != nil {
			t.Fatalf("%q is allowed and has no form: %v", raw, err)
		}
		if strings.ContainsAny(raw, " ?") || strings.ContainsFunc(raw, func(r rune) bool { return r < ' ' }) {
			return // not to be had in a request line
		}
		// The server.
		request, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET " + raw + " HTTP/1.1\r\nHost: example.com\r\n\r\n")))
		if err != nil {
			t.Fatalf("%q is allowed and cannot be read by a server: %v", raw, err)
		}
		if request.URL.Path != normal || request.URL.RawQuery != "" {
			t.Errorf("%q is %q to the rule, %q?%s to the server", raw, normal, request.URL.Path, request.URL.RawQuery)
		}
		if clean := path.Clean(normal); clean != normal && clean+"/" != normal {
			t.Errorf("%q is redirected to %q by the mux", normal, clean)
		}
		mux := http.NewServeMux()
		mux.HandleFunc("/{rest...}", func(http.ResponseWriter, *http.Request) {})
		if _, pattern := mux.Handler(request); pattern != "/{rest...}" || "/"+request.PathValue("rest") != normal && request.PathValue("rest") != "" {
			t.Errorf("%q is served by %q", raw, pattern)
		}
		// The record.
		recorded, err := url.Parse("http://example.com" + raw)
		if err != nil || recorded.Path != normal || recorded.Host != "example.com" {
			t.Errorf("%q is %q to the rule, %v, %v in the record", raw, normal, recorded, err)
		}
		// The rule that is suggested for it names it.
		one := policy.Policy{Mode: policy.Strict, Allow: rules(t, target.Rule())}
		if got := one.Decide(target); !got.Allowed {
			t.Errorf("%q is refused by %q", raw, target.Rule())
		}
	})
}
