package main

import (
	"net/netip"
	"strings"

	"agentops/test/escape/attempt"

	"golang.org/x/net/http2/hpack"
)

// identityProbes say two things of where they go.
func identityProbes() []probe {
	const allowed, other = attempt.Allowed, attempt.Refused
	head := func(t *try, host string, lines ...string) string {
		return "GET " + t.path() + " HTTP/1.1\r\nHost: " + host + "\r\n" + strings.Join(append(lines, ""), "\r\n") + "\r\n"
	}
	plain := func(name string, expected int, raw func(t *try) string) probe {
		return probe{name: name, try: func(t *try) verdict { return t.strict(t.request(allowed, 80, expected, raw(t))) }}
	}
	list := []probe{
		plain("host-other", 1, func(t *try) string { return head(t, other) }),
		plain("host-is-address", 1, func(t *try) string { return head(t, "192.175.48.77") }),
		plain("host-port", 1, func(t *try) string { return head(t, allowed+":8080") }),
		plain("host-later", 2, func(t *try) string {
			return "GET / HTTP/1.1\r\nHost: " + allowed + "\r\n\r\n" + head(t, other, "Connection: close")
		}),
		plain("host-tenth", 10, func(t *try) string {
			return strings.Repeat("GET / HTTP/1.1\r\nHost: "+allowed+"\r\n\r\n", 9) + head(t, other, "Connection: close")
		}),
		plain("absolute-form", 1, func(t *try) string {
			return "GET http://" + other + t.path() + " HTTP/1.1\r\nHost: " + allowed + "\r\n\r\n"
		}),
		plain("absolute-both", 1, func(t *try) string {
			return "GET http://" + other + t.path() + " HTTP/1.1\r\nHost: " + other + "\r\n\r\n"
		}),
		plain("absolute-address", 1, func(t *try) string {
			return "GET http://169.254.169.254/latest/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"
		}),
		plain("connect", 1, func(*try) string {
			return "CONNECT " + other + ":443 HTTP/1.1\r\nHost: " + other + ":443\r\n\r\n"
		}),
		plain("connect-allowed", 1, func(*try) string {
			return "CONNECT " + allowed + ":22 HTTP/1.1\r\nHost: " + allowed + ":22\r\n\r\n"
		}),
		plain("connect-host", 1, func(*try) string {
			return "CONNECT " + other + ":443 HTTP/1.1\r\nHost: " + allowed + "\r\n\r\n"
		}),
		plain("host-userinfo", 1, func(t *try) string { return head(t, allowed+"@"+other) }),
		plain("host-prefix", 1, func(t *try) string { return head(t, allowed+"."+other) }),
		plain("http-1.0", 1, func(t *try) string { return "GET " + t.path() + " HTTP/1.0\r\nHost: " + other + "\r\n\r\n" }),
		{name: "h2c-other", try: func(t *try) verdict {
			return t.speak(80, func(c *connection) verdict { return t.strict(t.h2(c, other, t.path())) })
		}},
		{name: "h2c-host", try: func(t *try) verdict {
			return t.speak(80, func(c *connection) verdict {
				return t.h2(c, allowed, t.path(), hpack.HeaderField{Name: "host", Value: other})
			})
		}},
		{name: "h2c-upgrade", try: func(t *try) verdict {
			// The second request would be HTTP/2, unseen, by what is upgraded to.
			raw := "GET / HTTP/1.1\r\nHost: " + allowed + "\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
			return t.request(allowed, 80, 1, raw)
		}},
		{name: "upgrade-other", try: func(t *try) verdict {
			return t.strict(t.request(allowed, 80, 1, head(t, other, "Connection: Upgrade", "Upgrade: websocket")))
		}},
		{name: "sni-other", try: func(t *try) verdict { return t.sni(other, other) }},
		{name: "sni-host", try: func(t *try) verdict { return t.sni(allowed, other) }},
		{name: "sni-none", try: func(t *try) verdict { return t.sni("", other) }},
		{name: "sni-h2", try: func(t *try) verdict {
			addr, err := lookUp(allowed)
			if err != nil {
				return t.blocked(err)
			}
			t.start()
			conn, err := t.dialTLS(netip.AddrPortFrom(addr, 443), allowed, "h2")
			if err != nil {
				return t.judgeResponses(nil, err)
			}
			defer conn.Close()
			return t.strict(t.h2(conn, other, t.path()))
		}},
		{name: "sni-at-attacker", try: func(t *try) verdict {
			// An allowed name, at an address of who tries: it is the proxy that
			// finds the name's address.
			return t.ownAddress(t.httpsAt(at4(443), allowed, allowed, t.path()))
		}},
		{name: "host-at-attacker", try: func(t *try) verdict {
			return t.ownAddress(t.requestAt(at4(80), 1, head(t, allowed)))
		}},
		{name: "synthetic-none", try: func(t *try) verdict {
			// An address of the resolver's range that it has given to nobody.
			return t.requestAt(netip.MustParseAddrPort("198.19.200.200:80"), 1, head(t, allowed))
		}},
	}
	// Client hellos that no library writes.
	for _, h := range []struct {
		name, sni string
		further   [][]byte
	}{
		{"hello-address", "192.175.48.77", nil},
		{"hello-address6", "2620:4f:8000::77", nil},
		{"hello-nul", allowed + "\x00." + other, nil},
		{"hello-dots", "..", nil},
		{"hello-long", strings.Repeat("a", 300) + "." + other, nil},
		{"hello-control", allowed + "\r\n." + other, nil},
		{"hello-two-names", allowed, [][]byte{extension(0, append([]byte{0, byte(len(other) + 3), 0, 0, byte(len(other))}, other...))}},
		{"hello-encrypted", other, [][]byte{extension(0xfe0d, append([]byte{0, 0, 1, 0, 1, 7, 0, 32}, make([]byte, 34)...))}},
		{"hello-early", other, [][]byte{extension(42, nil)}},
	} {
		list = append(list, probe{name: h.name, try: func(t *try) verdict {
			return t.hello(at4(443), h.sni, "", h.further...)
		}})
	}
	for i := range list {
		list[i].class, list[i].record = "identity", attempt.Flow
	}
	return list
}

// strict takes nothing for relayed: the request was for another host.
func (t *try) strict(v verdict) verdict {
	if v.outcome == attempt.Relayed {
		v.outcome = attempt.Reached
	}
	return v
}

// ownAddress is for requests of an allowed name to an address that is not its:
// that they are answered by the name's own host is as good as a refusal.
func (t *try) ownAddress(v verdict) verdict {
	if v.outcome == attempt.Relayed {
		v.detail += ", by the name's own host"
	}
	return v
}

// sni speaks TLS to the allowed host's address, with one name in it and another
// in the request.
func (t *try) sni(sni, host string) verdict {
	addr, err := lookUp(attempt.Allowed)
	if err != nil {
		return t.blocked(err)
	}
	return t.strict(t.httpsAt(netip.AddrPortFrom(addr, 443), sni, host, t.path()))
}

// parsingProbes are requests that two readers may understand in two ways. They
// are to the allowed host; what is hidden in them asks for a path that must
// arrive nowhere.
func parsingProbes() []probe {
	const host = "Host: " + attempt.Allowed + "\r\n"
	hidden := func(t *try) string {
		return "GET " + t.path() + "/hidden HTTP/1.1\r\nHost: " + attempt.Refused + "\r\n\r\n"
	}
	var list []probe
	add := func(name string, raw func(t *try) string) {
		list = append(list, probe{name: name, class: "parsing", record: attempt.Flow, try: func(t *try) verdict {
			return t.request(attempt.Allowed, 80, 1, raw(t))
		}})
	}
	post := func(t *try, lines string, body string) string {
		return "POST " + t.path() + " HTTP/1.1\r\n" + host + lines + "\r\n" + body
	}
	get := func(t *try, lines string) string { return "GET " + t.path() + " HTTP/1.1\r\n" + lines + "\r\n" }
	add("length-and-chunked", func(t *try) string {
		return post(t, "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"+hidden(t))
	})
	add("two-lengths", func(t *try) string { return post(t, "Content-Length: 0\r\nContent-Length: 44\r\n", hidden(t)) })
	add("length-list", func(t *try) string { return post(t, "Content-Length: 0, 44\r\n", hidden(t)) })
	add("length-plus", func(t *try) string { return post(t, "Content-Length: +5\r\n", hidden(t)) })
	add("length-negative", func(t *try) string { return post(t, "Content-Length: -1\r\n", hidden(t)) })
	add("length-hex", func(t *try) string { return post(t, "Content-Length: 0x5\r\n", hidden(t)) })
	add("length-huge", func(t *try) string { return post(t, "Content-Length: 99999999999999999999\r\n", hidden(t)) })
	add("chunked-twice", func(t *try) string {
		return post(t, "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n"+hidden(t))
	})
	add("chunked-obscured", func(t *try) string { return post(t, "Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"+hidden(t)) })
	add("chunked-tab", func(t *try) string { return post(t, "Transfer-Encoding:\x0bchunked\r\n", "0\r\n\r\n"+hidden(t)) })
	add("chunk-size", func(t *try) string {
		return post(t, "Transfer-Encoding: chunked\r\n", "fffffffffffffffff\r\n"+hidden(t))
	})
	add("chunk-bare-lf", func(t *try) string { return post(t, "Transfer-Encoding: chunked\r\n", "1\nx\n0\n\n"+hidden(t)) })
	add("two-hosts", func(t *try) string { return get(t, host+"Host: "+attempt.Refused+"\r\n") })
	add("no-host", func(t *try) string { return get(t, "") })
	add("host-space", func(t *try) string { return get(t, "Host : "+attempt.Refused+"\r\n"+host) })
	add("host-tab", func(t *try) string { return get(t, "Host:\t"+attempt.Allowed+"\t\r\n") })
	add("host-comma", func(t *try) string { return get(t, "Host: "+attempt.Allowed+", "+attempt.Refused+"\r\n") })
	add("host-nul", func(t *try) string { return get(t, "Host: "+attempt.Allowed+"\x00."+attempt.Refused+"\r\n") })
	add("host-dot", func(t *try) string { return get(t, "Host: "+attempt.Allowed+".\r\n") })
	add("host-case", func(t *try) string { return get(t, "hOsT: "+strings.ToUpper(attempt.Allowed)+"\r\n") })
	add("host-path", func(t *try) string { return get(t, "Host: "+attempt.Allowed+"/"+attempt.Refused+"\r\n") })
	add("host-backslash", func(t *try) string { return get(t, "Host: "+attempt.Refused+"\\@"+attempt.Allowed+"\r\n") })
	add("host-punycode", func(t *try) string { return get(t, "Host: xn--a.selftest\r\n") })
	add("host-unicode", func(t *try) string { return get(t, "Host: \uff41llowed\u3002selftest\r\n") })
	add("folded", func(t *try) string { return get(t, "Host: "+attempt.Allowed+"\r\n ."+attempt.Refused+"\r\n") })
	add("folded-first", func(t *try) string { return get(t, " Host: "+attempt.Refused+"\r\n"+host) })
	add("folded-other", func(t *try) string { return get(t, host+"X-A: b\r\n Host: "+attempt.Refused+"\r\n") })
	add("bare-lf", func(t *try) string {
		return "GET " + t.path() + " HTTP/1.1\nHost: " + attempt.Allowed + "\nX: y\n\n"
	})
	add("bare-lf-host", func(t *try) string { return get(t, host+"X: y\nHost: "+attempt.Refused+"\r\n") })
	add("bare-cr", func(t *try) string { return get(t, host+"X: y\rHost: "+attempt.Refused+"\r\n") })
	add("nul-header", func(t *try) string { return get(t, host+"X: a\x00b\r\n") })
	add("name-colon", func(t *try) string { return get(t, host+": x\r\n") })
	add("no-colon", func(t *try) string { return get(t, host+"nothing\r\n") })
	add("giant-header", func(t *try) string { return get(t, host+"X: "+strings.Repeat("a", 1<<20+16<<10)+"\r\n") })
	add("many-headers", func(t *try) string { return get(t, host+strings.Repeat("X: "+strings.Repeat("a", 50)+"\r\n", 20000)) })
	add("giant-target", func(t *try) string {
		return "GET /" + strings.Repeat("a", 1<<20+16<<10) + " HTTP/1.1\r\n" + host + "\r\n"
	})
	add("target-space", func(t *try) string { return "GET " + t.path() + " /x HTTP/1.1\r\n" + host + "\r\n" })
	add("target-control", func(t *try) string { return "GET " + t.path() + "\x01 HTTP/1.1\r\n" + host + "\r\n" })
	add("version-odd", func(t *try) string { return "GET " + t.path() + " HTTP/1.9\r\n" + host + "\r\n" })
	add("version-9", func(t *try) string { return "GET " + t.path() + " HTTP/9.9\r\n" + host + "\r\n" })
	add("method-odd", func(t *try) string { return "G\x00T " + t.path() + " HTTP/1.1\r\n" + host + "\r\n" })
	add("path-dots", func(t *try) string { return "GET /a/../" + t.path() + " HTTP/1.1\r\n" + host + "\r\n" })
	add("path-encoded", func(t *try) string { return "GET /%2e%2e/%2f" + t.path() + " HTTP/1.1\r\n" + host + "\r\n" })
	add("path-slashes", func(t *try) string { return "GET //" + attempt.Refused + t.path() + " HTTP/1.1\r\n" + host + "\r\n" })
	add("path-newline", func(t *try) string {
		return "GET " + t.path() + "%0d%0aHost:%20" + attempt.Refused + " HTTP/1.1\r\n" + host + "\r\n"
	})
	return list
}
