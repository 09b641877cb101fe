package policy

import "testing"

func TestPassthrough(t *testing.T) {
	for _, text := range []string{"", "*", "tcp:a.example:1", "GET a.example", "a.example/path", "https://a.example"} {
		if _, err := ParsePassthrough(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
	for _, c := range []struct {
		rule, other string
		want        bool
	}{
		{"a.example", "a.example", true},
		{"a.example:443", "a.example", true},
		{"a.example", "a.example:443", false},
		{"a.example:443,8443", "a.example:400-500,8443", true},
		{"a.example:443-600", "a.example:400-500", false},
		{"a.example", "b.example", false},
		{"a.b.example", "*.b.example", true},
		{"*.a.b.example", "*.b.example", true},
		{"*.b.example", "*.b.example", true},
		{"*.b.example", "*.a.b.example", false},
		{"b.example", "*.b.example", false},
		{"*.b.example", "b.example", false},
		{"192.0.2.1", "192.0.2.0/24", true},
		{"192.0.0.0/16", "192.0.2.0/24", false},
		{"a.example", "192.0.2.0/24", false},
		{"192.0.2.1", "a.example", false},
	} {
		rule, err := ParsePassthrough(c.rule)
		if err != nil {
			t.Fatal(err)
		}
		other, err := ParsePassthrough(c.other)
		if err != nil {
			t.Fatal(err)
		}
		if got := rule.Within(other); got != c.want {
			t.Errorf("%s within %s: %v", c.rule, c.other, got)
		}
	}
	rule, err := ParsePassthrough("*.example.com:443")
	if err != nil {
		t.Fatal(err)
	}
	p := Policy{Passthrough: []Rule{rule}}
	if !p.PassesThrough("a.example.com", 443) || p.PassesThrough("a.example.com", 444) || p.PassesThrough("example.com", 443) {
		t.Error("another host or port than named passes")
	}
}
