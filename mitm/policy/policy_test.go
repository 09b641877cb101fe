package policy_test

import (
	"net/netip"
	"strings"
	"testing"

	"agentops/mitm/policy"
)

func rules(t *testing.T, texts ...string) []policy.Rule {
	t.Helper()
	parsed, err := policy.ParseRules(texts)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestDecide(t *testing.T) {
	cases := []struct {
		mode        policy.Mode
		allow, deny []string
		host        string
		port        uint16
		want        policy.Verdict
	}{
		{policy.Permissive, nil, nil, "example.com", 443, policy.Verdict{Allowed: true}},
		{policy.Strict, nil, nil, "example.com", 443, policy.Verdict{Reason: policy.NotAllowed}},
		{policy.Strict, []string{"example.com"}, nil, "example.com", 8443, policy.Verdict{Allowed: true, Rule: "example.com"}},
		{policy.Strict, []string{"example.com:443"}, nil, "example.com", 8443, policy.Verdict{Reason: policy.NotAllowed}},
		{policy.Strict, []string{"example.com:80,8000-8999"}, nil, "example.com", 8443, policy.Verdict{Allowed: true, Rule: "example.com:80,8000-8999"}},
		{policy.Strict, []string{"example.com"}, nil, "www.example.com", 443, policy.Verdict{Reason: policy.NotAllowed}},
		{policy.Strict, []string{"*.example.com"}, nil, "a.b.example.com", 443, policy.Verdict{Allowed: true, Rule: "*.example.com"}},
		{policy.Strict, []string{"*.example.com"}, nil, "example.com", 443, policy.Verdict{Reason: policy.NotAllowed}},
		{policy.Strict, []string{"*.example.com"}, nil, "notexample.com", 443, policy.Verdict{Reason: policy.NotAllowed}},
		{policy.Strict, []string{"Exämple.COM."}, nil, "xn--exmple-cua.com", 443, policy.Verdict{Allowed: true, Rule: "Exämple.COM."}},
		{policy.Strict, []string{"*"}, []string{"*.example.com"}, "a.example.com", 443, policy.Verdict{Reason: policy.Denied, Rule: "*.example.com"}},
		{policy.Permissive, []string{"a.example.com"}, []string{"a.example.com:443"}, "a.example.com", 443, policy.Verdict{Reason: policy.Denied, Rule: "a.example.com:443"}},
		{policy.Permissive, nil, []string{"a.example.com:443"}, "a.example.com", 80, policy.Verdict{Allowed: true}},
		{policy.Strict, []string{"10.0.0.0/8:22"}, nil, "10.9.8.7", 22, policy.Verdict{Allowed: true, Rule: "10.0.0.0/8:22"}},
		{policy.Strict, []string{"[2001:db8::/32]:443"}, nil, "2001:db8::7", 443, policy.Verdict{Allowed: true, Rule: "[2001:db8::/32]:443"}},
		{policy.Strict, []string{"2001:db8::7"}, nil, "2001:db8::7", 1, policy.Verdict{Allowed: true, Rule: "2001:db8::7"}},
		{policy.Strict, []string{"10.0.0.0/8"}, nil, "10.example.com", 22, policy.Verdict{Reason: policy.NotAllowed}},
	}
	for _, c := range cases {
		p := &policy.Policy{Mode: c.mode, Allow: rules(t, c.allow...), Deny: rules(t, c.deny...)}
		if got := p.Decide(policy.Target{Host: c.host, Port: c.port}); got != c.want {
			t.Errorf("%s allow %q deny %q: %s:%d is %+v, want %+v", c.mode, c.allow, c.deny, c.host, c.port, got, c.want)
		}
	}
}

func TestDecideHost(t *testing.T) {
	p := &policy.Policy{Mode: policy.Strict, Allow: rules(t, "a.example.com:443", "b.example.com"), Deny: rules(t, "b.example.com:25", "c.example.com")}
	for host, want := range map[string]bool{"a.example.com": true, "b.example.com": true, "c.example.com": false, "d.example.com": false} {
		if got := p.DecideHost(host); got.Allowed != want {
			t.Errorf("%s: %+v, want allowed %v", host, got, want)
		}
	}
}

func TestAllowsAddressOnlyByAddressRules(t *testing.T) {
	p := &policy.Policy{Allow: rules(t, "*", "10.1.0.0/16:5432", "::1")}
	for addr, want := range map[string]bool{
		"10.1.2.3:5432":          true,
		"[::ffff:10.1.2.3]:5432": true,
		"10.1.2.3:5433":          false,
		"10.2.2.3:5432":          false,
		"127.0.0.1:80":           false, // "*" names hosts, not what may not be dialled
		"[::1]:80":               true,
	} {
		if got := p.AllowsAddress(netip.MustParseAddrPort(addr)); got != want {
			t.Errorf("%s: %v, want %v", addr, got, want)
		}
	}
}

func TestBadRules(t *testing.T) {
	for text, want := range map[string]string{
		"":                    "empty",
		"example.com:":        "no port follows",
		"example.com:0":       "no port",
		"example.com:70000":   "no port",
		"example.com:90-80":   "no port",
		"exa mple.com":        `' '`,
		"a.*.com":             "a * stands only",
		"*a.com":              "a * stands only",
		"example..com":        "1 to 63",
		"10.0.0.1/8":          "write 10.0.0.0/8",
		"[::1":                "bracket",
		"[::1]x":              "bracket",
		"127.1":               "ends with a number",
		"http://example.com/": "without scheme",
		"fe80::1%eth0":        "zone",
	} {
		_, err := policy.ParseRule(text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want an error with %q", text, err, want)
		}
	}
}

func FuzzHost(f *testing.F) {
	for _, seed := range []string{"example.com.", "EXAMPLE.com", "xn--exmple-cua.com", "[::1]", "::ffff:1.2.3.4", "127.1", "a\x00b", "ｅxample．com"} {
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
