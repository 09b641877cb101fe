package policy_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"agentops/mitm/policy"
)

func rules(t testing.TB, texts ...string) []policy.Rule {
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
		if got := p.AllowsAddress(policy.TCP, netip.MustParseAddrPort(addr)); got != want {
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
		"exa mple.com":        "no method",
		"get example.com":     "in capitals",
		"GET, example.com":    "no method",
		"GET a b":             "[METHODS] HOST",
		"/api":                "no host",
		"tcp:443":             "ends with a number",
		"tcp:db/x":            "methods and paths are of HTTP",
		"GET udp:ntp:123":     "methods and paths are of HTTP",
		"tcp:udp:x":           "no port",
		"example.com/a?b":     "query",
		"example.com/a//b":    "two slashes",
		"example.com/a/../b":  "dot segment",
		"example.com/a**":     "whole segments",
		"example.com/%2e%2e/": "dot segment",
		"example.com/a%2fb":   "escaped slash",
		"10.0.0.0/33":         "",
		"::ffff:10.0.0.0/104": "IPv4",
		"example.com:1,":      "no port",
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

// A target that leaves something open is judged by its best case.
func TestDecideByProtocolAndRequest(t *testing.T) {
	type target = policy.Target
	http := func(method, path string) target {
		return target{Host: "a.example", Port: 443, Protocol: policy.HTTP, Method: method, Path: path}
	}
	opaque := target{Host: "a.example", Port: 443, Protocol: policy.NotHTTP}
	tcp := target{Host: "a.example", Port: 443, Protocol: policy.TCP}
	udp := target{Host: "a.example", Port: 443, Protocol: policy.UDP}
	open := target{Host: "a.example"}
	const allowed = policy.Reason("")
	for _, c := range []struct {
		mode        policy.Mode
		allow, deny string // rules with | between
		want        map[target]policy.Reason
	}{
		{policy.Permissive, "", "", map[target]policy.Reason{http("GET", "/x"): allowed, opaque: allowed, tcp: allowed, udp: policy.NotAllowed, open: allowed}},
		{policy.Strict, "a.example", "", map[target]policy.Reason{http("PUT", "/x"): allowed, opaque: policy.Opaque, tcp: allowed, udp: policy.NotAllowed, open: allowed}},
		{policy.Strict, "tcp:a.example:443", "", map[target]policy.Reason{http("PUT", "/x"): allowed, opaque: allowed, tcp: allowed, udp: policy.NotAllowed, open: allowed}},
		{policy.Strict, "udp:a.example:443", "", map[target]policy.Reason{http("PUT", "/x"): policy.NotAllowed, opaque: policy.NotAllowed, tcp: policy.NotAllowed, udp: allowed, open: allowed}},
		{policy.Permissive, "udp:*.example", "", map[target]policy.Reason{udp: allowed}},
		{policy.Strict, "tcp:a.example:22", "", map[target]policy.Reason{opaque: policy.NotAllowed, tcp: policy.NotAllowed, open: allowed}},
		{policy.Strict, "GET,HEAD a.example/api/** /v1/*/items", "", map[target]policy.Reason{
			http("GET", "/api"): allowed, http("HEAD", "/api/"): allowed, http("GET", "/api/a/b"): allowed, http("GET", "/v1/7/items"): allowed,
			http("POST", "/api/a"): policy.NotAllowed, http("get", "/api/a"): policy.NotAllowed, http("GET", "/apis"): policy.NotAllowed,
			http("GET", "/v1/7/8/items"): policy.NotAllowed, http("GET", "/v1/items"): policy.NotAllowed, http("OPTIONS", "*"): policy.NotAllowed,
			http("GET", "/api/../x"): policy.Malformed, http("GET", "/x/../api/y"): policy.Malformed, http("GET", "/api/%2e%2E/x"): policy.Malformed,
			http("GET", "*"):        policy.Malformed,
			http("GET", "/%61pi/x"): allowed, http("GET", "/api/%C3%A4(1)"): allowed,
			opaque: policy.Opaque, tcp: allowed, udp: policy.NotAllowed, open: allowed, http("GET", ""): allowed, http("POST", ""): policy.NotAllowed,
		}},
		// In permissive, what may be done is not narrowed by a rule that allows some.
		{policy.Permissive, "GET a.example/api", "", map[target]policy.Reason{http("POST", "/x/../y"): allowed, opaque: allowed}},
		{policy.Permissive, "a.example", "a.example/admin/**", map[target]policy.Reason{
			http("GET", "/"): allowed, http("GET", "/administrator"): allowed, http("GET", "/x/admin/y"): allowed,
			http("GET", "/admin"): policy.Denied, http("GET", "/admin/"): policy.Denied, http("GET", "/admin/x"): policy.Denied,
			http("GET", "/ADMIN/x"): policy.Denied, http("GET", "/%61dmin/x"): policy.Denied, http("GET", "/admin./x"): policy.Denied, http("GET", "/admin%20/x"): policy.Denied,
			http("GET", "//admin/x"): policy.Malformed, http("GET", "/x/../admin"): policy.Malformed, http("GET", "/./admin"): policy.Malformed,
			http("GET", "/admin%2fx"): policy.Malformed, http("GET", `/admin\x`): policy.Malformed, http("GET", "/admin;a=b/x"): policy.Malformed, http("GET", "/admin%3Ba/x"): policy.Malformed,
			http("GET", "/admin%00"): policy.Malformed, http("GET", "/%2561dmin"): policy.Malformed, http("GET", "/%c0%ae%c0%ae/admin"): policy.Malformed, http("GET", "/%u0061dmin"): policy.Malformed,
			http("GET", "/x#/admin"): policy.Malformed, http("OPTIONS", "*"): policy.Malformed,
			opaque: policy.Opaque, udp: policy.Opaque, tcp: allowed, open: allowed,
		}},
		{policy.Permissive, "", "a.example/admin/", map[target]policy.Reason{http("GET", "/admin"): policy.Denied, http("GET", "/admin/x"): allowed}},
		{policy.Permissive, "", "POST,PUT a.example", map[target]policy.Reason{
			http("GET", "/x/../y"): allowed, http("POST", "/x"): policy.Denied, http("post", "/x"): policy.Denied, http("", ""): allowed, opaque: policy.Opaque, tcp: allowed, open: allowed,
		}},
		{policy.Permissive, "udp:a.example", "tcp:a.example", map[target]policy.Reason{http("GET", "/"): policy.Denied, opaque: policy.Denied, tcp: policy.Denied, udp: allowed, open: allowed}},
		{policy.Permissive, "udp:a.example", "udp:a.example", map[target]policy.Reason{http("GET", "/"): allowed, udp: policy.Denied, open: allowed}},
		{policy.Permissive, "udp:a.example", "a.example", map[target]policy.Reason{http("GET", "/"): policy.Denied, tcp: policy.Denied, udp: policy.Denied, open: policy.Denied}},
	} {
		p := &policy.Policy{Mode: c.mode, Allow: rules(t, list(c.allow)...), Deny: rules(t, list(c.deny)...)}
		for target, want := range c.want {
			if got := p.Decide(target); got.Reason != want || got.Allowed != (want == allowed) {
				t.Errorf("%s allow %q deny %q: %+v is %+v, want %q", c.mode, c.allow, c.deny, target, got, want)
			}
		}
	}
}

func list(texts string) []string {
	return strings.FieldsFunc(texts, func(r rune) bool { return r == '|' })
}

// A rule with methods or paths opens an address to these requests alone, in both
// modes and whatever wider rules there are.
func TestAnAddressIsOpenedByItsOwnRules(t *testing.T) {
	for _, mode := range []policy.Mode{policy.Permissive, policy.Strict} {
		p := &policy.Policy{Mode: mode, Allow: rules(t, "*", "GET 10.0.0.5:80/api/**", "10.0.0.6:80")}
		for target, want := range map[policy.Target]bool{
			{Host: "10.0.0.5", Port: 80, Protocol: policy.HTTP, Method: "GET", Path: "/api/x"}:  true,
			{Host: "10.0.0.5", Port: 80, Protocol: policy.HTTP, Method: "POST", Path: "/api/x"}: false,
			{Host: "10.0.0.5", Port: 80, Protocol: policy.HTTP, Method: "GET", Path: "/"}:       false,
			{Host: "10.0.0.5", Port: 80, Protocol: policy.NotHTTP}:                              false,
			{Host: "10.0.0.5", Port: 80, Protocol: policy.TCP}:                                  true,
			{Host: "10.0.0.6", Port: 80, Protocol: policy.HTTP, Method: "POST", Path: "/"}:      true,
		} {
			if got := p.Decide(target); got.Allowed != want {
				t.Errorf("%s: %+v is %+v, want allowed %v", mode, target, got, want)
			}
		}
		if !p.AllowsAddress(policy.TCP, netip.MustParseAddrPort("10.0.0.5:80")) || p.AllowsAddress(policy.UDP, netip.MustParseAddrPort("10.0.0.5:80")) {
			t.Errorf("%s: the address may be dialled over TCP and not over UDP", mode)
		}
	}
}

// A bound narrows: both it and the policy must allow.
func TestBound(t *testing.T) {
	const file = "/etc/bound"
	p := &policy.Policy{
		Mode: policy.Permissive, Allow: rules(t, "*", "10.0.0.5:80", "10.0.0.6:80", "udp:*"),
		Bound: &policy.Bound{Source: file, Allow: rules(t, "*.example", "GET b.test/x", "*.strict.test:443", "10.0.0.5", "udp:c.test:123")},
	}
	for target, want := range map[policy.Target]policy.Reason{
		{Host: "a.example", Port: 1, Protocol: policy.HTTP, Method: "PUT", Path: "/"}: "",
		{Host: "a.example", Port: 1, Protocol: policy.NotHTTP}:                        "",
		{Host: "a.example", Port: 1, Protocol: policy.UDP}:                            policy.NotAllowed,
		{Host: "c.test", Port: 123, Protocol: policy.UDP}:                             "",
		{Host: "b.test", Port: 1, Protocol: policy.HTTP, Method: "GET", Path: "/x"}:   "",
		{Host: "b.test", Port: 1, Protocol: policy.HTTP, Method: "GET", Path: "/y"}:   policy.NotAllowed,
		{Host: "b.test", Port: 1, Protocol: policy.NotHTTP}:                           policy.Opaque,
		{Host: "other.test", Port: 443}:                                               policy.NotAllowed,
	} {
		got := p.Decide(target)
		if got.Reason != want || !got.Allowed && (got.Source != file || !got.Bound) {
			t.Errorf("%+v is %+v, want %q", target, got, want)
		}
	}
	p.Bound.Mode = policy.Strict
	if got := p.Decide(policy.Target{Host: "a.example", Port: 1, Protocol: policy.NotHTTP}); got.Reason != policy.Opaque {
		t.Errorf("in a strict bound, an opaque flow is %+v", got)
	}
	for addr, want := range map[string]bool{"10.0.0.5:80": true, "10.0.0.6:80": false} {
		if got := p.AllowsAddress(policy.TCP, netip.MustParseAddrPort(addr)); got != want {
			t.Errorf("%s may be dialled: %v", addr, got)
		}
		if got := p.DecidePinned(policy.TCP, netip.MustParseAddrPort(addr)); got.Allowed != want || !want && got.Source != file {
			t.Errorf("a pin to %s is %+v", addr, got)
		}
	}
	// An empty list allows nothing; to have none is another matter.
	p.Bound.Allow = nil
	if got := p.DecideHost("a.example"); got.Allowed {
		t.Errorf("nothing is in the bound, and %+v", got)
	}
}

func TestDeniedNetworksAreDeniedByWhateverNameAndPin(t *testing.T) {
	p := &policy.Policy{Allow: rules(t, "10.0.0.5"), Deny: rules(t, "10.0.0.0/24:22", "example.com", "udp:10.1.0.0/16")}
	for addr, want := range map[string]bool{"10.0.0.5:22": false, "[::ffff:10.0.0.5]:22": false, "10.0.0.5:23": true, "10.1.0.1:22": true} {
		to := netip.MustParseAddrPort(addr)
		if a, b := p.DecideAddress(policy.TCP, to), p.DecidePinned(policy.TCP, to); a.Allowed != want || b.Allowed != want {
			t.Errorf("%s is %+v by a name, %+v by a pin", addr, a, b)
		}
	}
	if got := p.DecideAddress(policy.UDP, netip.MustParseAddrPort("10.1.0.1:53")); got.Allowed {
		t.Errorf("%+v", got)
	}
}

func TestTheZeroRuleNamesNothing(t *testing.T) {
	p := &policy.Policy{Mode: policy.Strict, Allow: make([]policy.Rule, 1)}
	if got := p.DecideHost("example.com"); got.Allowed {
		t.Errorf("%+v", got)
	}
}

func TestRulesInParts(t *testing.T) {
	for want, spec := range map[string]policy.RuleSpec{
		"example.com":                       {Host: "example.com"},
		"example.com:80,8000-8999":          {Host: "example.com", Ports: []string{"80", "8000-8999"}},
		"[2001:db8::/32]:443":               {Host: "2001:db8::/32", Ports: []string{"443"}},
		"GET,HEAD example.com:443 /a/** /b": {Host: "example.com:443", Methods: []string{"GET", "HEAD"}, Paths: []string{"/a/**", "/b"}},
		"GET 10.0.0.5 /8":                   {Host: "10.0.0.5", Methods: []string{"GET"}, Paths: []string{"/8"}},
		"tcp:db.example:5432":               {TCP: "db.example:5432"},
		"udp:[2001:db8::1]:123":             {UDP: "[2001:db8::1]:123"},
	} {
		rule, err := spec.Rule()
		if err != nil || rule.String() != want {
			t.Errorf("%+v is %q, %v, want %q", spec, rule, err, want)
		}
	}
	for want, spec := range map[string]policy.RuleSpec{
		"no host":         {Methods: []string{"GET"}, Paths: []string{"/"}},
		"in parts":        {},
		"list of methods": {Host: "a", Methods: []string{}},
		"or paths is":     {Host: "a", Paths: []string{}},
		"no port":         {Host: "a", Ports: []string{}},
		"blank":           {Host: "GET a"},
		"slash":           {Host: "a", Paths: []string{"api"}},
		"nothing else":    {TCP: "a:1", Host: "a"},
		"ends with":       {Host: "tcp", Ports: []string{"443"}},
	} {
		if rule, err := spec.Rule(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v is %q, %v, want an error with %q", spec, rule, err, want)
		}
	}
}

// What is said to allow a target does, and names no other.
func TestTheHintAllowsTheTargetAlone(t *testing.T) {
	for _, target := range []policy.Target{
		{Host: "a.example", Port: 443, Protocol: policy.HTTP},
		{Host: "a.example", Port: 443, Protocol: policy.NotHTTP},
		{Host: "2001:db8::1", Port: 123, Protocol: policy.UDP},
		{Host: "10.0.0.5", Port: 80, Protocol: policy.HTTP, Method: "PATCH", Path: "/8/%2A*/a%20b/%C3%A4%25/"},
	} {
		p := &policy.Policy{Mode: policy.Strict, Allow: rules(t, target.Rule())}
		if got := p.Decide(target); !got.Allowed {
			t.Errorf("%+v is %+v by %q", target, got, target.Rule())
		}
		other := target
		if other.Path != "" {
			other.Path = "/8/xx/a%20b/%C3%A4%25/"
		} else {
			other.Port++
		}
		if got := p.Decide(other); got.Allowed {
			t.Errorf("%+v is %+v by %q", other, got, target.Rule())
		}
	}
}

func TestHostsHaveOneForm(t *testing.T) {
	for text, want := range map[string]string{
		"WWW.Example.COM.": "www.example.com", "b\u00fccher.example": "xn--bcher-kva.example", "B\u00dcCHER\u3002example": "xn--bcher-kva.example",
		"\uff45xample.com": "example.com", "_srv.a_b.example": "_srv.a_b.example", "3proxy": "3proxy", "4f3a2b": "4f3a2b",
		"127.0.0.1": "127.0.0.1", "[::1]": "::1", "[0:0:0:0:0:0:0:1]": "::1", "[::FFFF:1.2.3.4]": "1.2.3.4", "::ffff:102:304": "1.2.3.4",
		// Refused:
		"127.1": "", "2130706433": "", "0x7f000001": "", "0X7F.1": "", "0x7f.0x0.0x0.0x1": "", "017700000001": "", "0177.0.0.1": "", "127.0.0.1.": "", "127.0.0.01": "", "a.0x": "",
		"\uff11\uff12\uff17.0.0.1": "", "127\u30020\u30020\u30021": "", "[127.0.0.1]": "", "[::1": "", "::1]": "", "[[::1]]": "", "[::1]x": "", "[fe80::1%25eth0]": "", "fe80::1%eth0": "", "[example.com]": "",
		"": "", ".": "", "a..b": "", "a.example..": "", ".a": "", "a b": "", "a/b": "", "a@b": "", "a:80": "", "*.a": "", "*": "", "a\x00b": "", "a%2eb": "", "a\nb": "",
		strings.Repeat("a", 64): "", strings.Repeat("a.", 127) + "a": "",
	} {
		got, err := policy.Host(text)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q is %q, %v, want %q", text, got, err, want)
		}
	}
}

func TestUDPPorts(t *testing.T) {
	for written, want := range map[string][][2]uint16{
		"a.example tcp:b.example:22 *":               nil,
		"udp:a.example:123 udp:*.b.example:1-9,4500": {{123, 123}, {1, 9}, {4500, 4500}},
		"udp:10.0.0.0/8":                             {{1, 65535}},
	} {
		p := &policy.Policy{Allow: rules(t, strings.Fields(written)...), Deny: rules(t, "udp:*:500")}
		if got := p.UDPPorts(); !slices.Equal(got, want) {
			t.Errorf("%s: ports %v, want %v", written, got, want)
		}
	}
}
