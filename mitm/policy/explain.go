package policy

import (
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// Explain says a verdict that refuses a target in words: why, and what would
// allow it, which may be empty.
func (p *Policy) Explain(t Target, v Verdict) (detail, hint string) {
	what := t.address()
	others := t.Method != "" && p.Decide(Target{Host: t.Host, Port: t.Port, Protocol: HTTP}).Allowed
	if others {
		what = t.Method + " " + what + t.Path
	} else {
		t.Method, t.Path = "", ""
	}
	allow := t.Rule()
	switch {
	case v.Reason == Denied:
		detail = fmt.Sprintf("%s is denied by the rule %q", what, v.Rule)
		hint = "take the rule out"
	case v.Reason == Malformed:
		return v.Detail, "send the path in its plain form"
	case v.Reason == Opaque && v.Rule != "":
		detail = fmt.Sprintf("%s is refused by the rule %q: %s", what, v.Rule, v.Detail)
		hint = "give the rule the ports of HTTP alone, or take it out"
	case v.Bound:
		return fmt.Sprintf("no rule of %s allows %s", v.Source, what), fmt.Sprintf("add %q to network.allow in %s", allow, v.Source)
	case v.Reason == NotAllowed || v.Reason == Opaque:
		detail = "no rule allows " + what
		if v.Reason == Opaque {
			detail += ": " + v.Detail
		}
		if p.Mode == Strict && v.Source != "" {
			detail += " (strict by " + v.Source + ")"
		}
		return detail, "agent run --allow " + quote(allow)
	}
	if v.Source != "" {
		detail += " of " + v.Source
		hint += " of " + v.Source
	}
	return detail, hint
}

// Rule is the text of the rule that names the target and no more, as far as
// rules can tell.
func (t Target) Rule() string {
	switch t.Protocol {
	case NotHTTP:
		return "tcp:" + t.address()
	case UDP:
		return "udp:" + t.address()
	}
	spec := []string{t.address()}
	if t.Method != "" {
		spec = []string{t.Method, t.address()}
	}
	if path, err := Path(t.Path); err == nil {
		segments := strings.Split(path, "/")
		for i, s := range segments {
			segments[i] = url.PathEscape(s) // a star as well
		}
		spec = append(spec, strings.Join(segments, "/"))
	}
	text := strings.Join(spec, " ")
	if _, err := ParseRule(text); err != nil {
		return t.address() // a method or a path that rules do not have
	}
	return text
}

func (t Target) address() string { return net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port))) }

// quote makes one word of a rule for a shell.
func quote(rule string) string {
	if strings.ContainsAny(rule, " *[") {
		return "'" + rule + "'"
	}
	return rule
}
