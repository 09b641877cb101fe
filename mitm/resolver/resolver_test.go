package resolver

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"agentops/audit"
	"agentops/mitm/policy"

	"github.com/miekg/dns"
	"github.com/sirupsen/logrus"
)

// recorder keeps events in memory; full makes it fail.
type recorder struct {
	mu     sync.Mutex
	events []audit.Event
	full   bool
}

func (r *recorder) Append(e audit.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.full {
		return errors.New("disk full")
	}
	r.events = append(r.events, e)
	return nil
}

func newResolver(t *testing.T, p *policy.Policy, exists func(context.Context, string) error) (*Resolver, *recorder) {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	rec := &recorder{}
	return New(Config{
		Names: NewNames(), Policy: p, Recorder: rec, Log: log, Exists: exists,
		Self: "box", Own: []netip.Addr{netip.MustParseAddr("198.19.255.254")},
	}), rec
}

func ask(t *testing.T, r *Resolver, name string, qtype uint16) *dns.Msg {
	t.Helper()
	query := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	packet, err := query.Pack()
	if err != nil {
		t.Fatal(err)
	}
	reply := r.answer(t.Context(), message{server: netip.MustParseAddrPort("8.8.8.8:53"), packet: packet})
	if reply == nil {
		t.Fatalf("no reply to %s %s", name, dns.TypeToString[qtype])
	}
	if reply.Id != query.Id || !reply.Response {
		t.Errorf("reply %v does not fit the query", reply)
	}
	return reply
}

func found(context.Context, string) error { return nil }

func TestNamesGetAddressesOfTheirOwn(t *testing.T) {
	r, rec := newResolver(t, &policy.Policy{}, found)
	a := ask(t, r, "A.example.com", dns.TypeA).Answer[0].(*dns.A).A
	b := ask(t, r, "b.example.com", dns.TypeA).Answer[0].(*dns.A).A
	again := ask(t, r, "a.EXAMPLE.com", dns.TypeA).Answer[0].(*dns.A).A
	six := ask(t, r, "b.example.com", dns.TypeAAAA).Answer[0].(*dns.AAAA).AAAA
	if a.Equal(b) || !a.Equal(again) {
		t.Errorf("addresses %s, %s, %s", a, b, again)
	}
	for ip, want := range map[string]string{a.String(): "a.example.com", b.String(): "b.example.com", six.String(): "b.example.com"} {
		if name, ok := r.config.Names.Name(netip.MustParseAddr(ip)); name != want || !ok {
			t.Errorf("%s is %q, want %q", ip, name, want)
		}
	}
	reverse, err := dns.ReverseAddr(six.String())
	if err != nil {
		t.Fatal(err)
	}
	if ptr := ask(t, r, reverse, dns.TypePTR).Answer[0].(*dns.PTR).Ptr; ptr != "b.example.com." {
		t.Errorf("PTR of %s is %s", six, ptr)
	}
	if len(rec.events) != 5 {
		t.Errorf("%d questions recorded, asked 5", len(rec.events))
	}
	event := rec.events[0].(audit.DNSQuery)
	if event.Name != "A.example.com." || event.QType != "A" || event.RCode != "NOERROR" || event.Server != "8.8.8.8:53" || !slices.Equal(event.Answers, []string{a.String()}) {
		t.Errorf("recorded %+v", event)
	}
}

func TestTheRestIsAnsweredSafely(t *testing.T) {
	r, _ := newResolver(t, &policy.Policy{}, func(_ context.Context, name string) error {
		switch name {
		case "missing.example":
			return &net.DNSError{IsNotFound: true}
		case "broken.example":
			return &net.DNSError{IsTimeout: true}
		}
		return nil
	})
	for _, c := range []struct {
		name    string
		qtype   uint16
		rcode   int
		answers int
	}{
		{"example.com", dns.TypeHTTPS, dns.RcodeSuccess, 0},
		{"example.com", dns.TypeSVCB, dns.RcodeSuccess, 0},
		{"example.com", dns.TypeTXT, dns.RcodeSuccess, 0},
		{"example.com", dns.TypeANY, dns.RcodeSuccess, 0},
		{"example.com", 65280, dns.RcodeSuccess, 0},
		{"missing.example", dns.TypeA, dns.RcodeNameError, 0},
		{"broken.example", dns.TypeA, dns.RcodeServerFailure, 0},
		{"127.1", dns.TypeA, dns.RcodeNameError, 0},
		{"localhost", dns.TypeA, dns.RcodeSuccess, 1},
		{"localhost", dns.TypeAAAA, dns.RcodeSuccess, 1},
		{"box", dns.TypeA, dns.RcodeSuccess, 1},
		{"4.3.2.1.in-addr.arpa", dns.TypePTR, dns.RcodeNameError, 0},
		{"x.in-addr.arpa", dns.TypePTR, dns.RcodeNameError, 0},
		{"1.0.18.198.in-addr.arpa", dns.TypePTR, dns.RcodeNameError, 0}, // nobody's yet
	} {
		reply := ask(t, r, c.name, c.qtype)
		if reply.Rcode != c.rcode || len(reply.Answer) != c.answers {
			t.Errorf("%s %s: %s with %d answers, want %s with %d", c.name, dns.TypeToString[c.qtype],
				dns.RcodeToString[reply.Rcode], len(reply.Answer), dns.RcodeToString[c.rcode], c.answers)
		}
	}
}

func TestARefusedNameIsNotLookedUp(t *testing.T) {
	r, rec := newResolver(t, &policy.Policy{Mode: policy.Strict}, func(_ context.Context, name string) error {
		t.Errorf("%s was looked up", name)
		return nil
	})
	reply := ask(t, r, "c2VjcmV0.example.com", dns.TypeA)
	if reply.Rcode != dns.RcodeSuccess || len(reply.Answer) != 1 {
		t.Errorf("reply %v, want an address whose connections are refused", reply)
	}
	if event := rec.events[0].(audit.DNSQuery); event.Reason != "not-allowed" {
		t.Errorf("recorded %+v", event)
	}
}

func TestWhatCannotBeRecordedIsNotAnswered(t *testing.T) {
	r, rec := newResolver(t, &policy.Policy{}, found)
	rec.full = true
	packet, err := new(dns.Msg).SetQuestion("example.com.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	if reply := r.answer(t.Context(), message{server: netip.AddrPort{}, packet: packet}); reply != nil {
		t.Errorf("answered %v", reply)
	}
}

func TestOddMessages(t *testing.T) {
	r, rec := newResolver(t, &policy.Policy{}, found)
	pack := func(change func(*dns.Msg)) []byte {
		m := new(dns.Msg).SetQuestion("example.com.", dns.TypeA)
		change(m)
		data, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for name, c := range map[string]struct {
		packet []byte
		rcode  int
	}{
		"update":        {pack(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		"chaos":         {pack(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		"two questions": {pack(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), dns.RcodeFormatError},
		"no question":   {pack(func(m *dns.Msg) { m.Question = nil }), dns.RcodeFormatError},
		"cut off":       {pack(func(*dns.Msg) {})[:20], dns.RcodeFormatError},
		"a response":    {pack(func(m *dns.Msg) { m.Response = true }), -1},
		"not DNS":       {[]byte("hello"), -1},
	} {
		before := len(rec.events)
		reply := r.answer(t.Context(), message{server: netip.MustParseAddrPort("8.8.8.8:53"), packet: c.packet})
		rcode := -1
		if reply != nil {
			rcode = reply.Rcode
		}
		if rcode != c.rcode || len(rec.events) != before+1 {
			t.Errorf("%s: rcode %d, want %d; %d events", name, rcode, c.rcode, len(rec.events)-before)
		}
	}
}

func TestNamesRunOut(t *testing.T) {
	names := NewNames()
	for i := range maxNames {
		if _, _, err := names.Addresses(string(rune('a'+i%26)) + string(rune(0x4e00+i/26))); err != nil {
			t.Fatal(i, err)
		}
	}
	if _, _, err := names.Addresses("one too many"); !errors.Is(err, ErrFull) {
		t.Errorf("after %d names: %v", maxNames, err)
	}
	last, _, err := names.Addresses("a" + string(rune(0x4e00)))
	if err != nil || last != netip.MustParseAddr("198.18.0.1") {
		t.Errorf("the first name has %s, %v", last, err)
	}
}

func FuzzAnswer(f *testing.F) {
	for _, q := range []dns.Question{
		{Name: "example.com.", Qtype: dns.TypeA, Qclass: dns.ClassINET}, {Name: "EXAMPLE.com.", Qtype: dns.TypeAAAA, Qclass: dns.ClassINET},
		{Name: "1.0.18.198.in-addr.arpa.", Qtype: dns.TypePTR, Qclass: dns.ClassINET}, {Name: "a.example.com.", Qtype: dns.TypeHTTPS, Qclass: dns.ClassINET},
		{Name: "version.bind.", Qtype: dns.TypeTXT, Qclass: dns.ClassCHAOS}, {Name: ".", Qtype: dns.TypeANY, Qclass: dns.ClassINET},
		{Name: `a\000b\.c.example.com.`, Qtype: dns.TypeA, Qclass: dns.ClassINET}, {Name: "127.1.", Qtype: 65535, Qclass: dns.ClassINET},
	} {
		for _, change := range []func(*dns.Msg){
			func(*dns.Msg) {}, func(m *dns.Msg) { m.SetEdns0(512, true) }, func(m *dns.Msg) { m.Response = true }, func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate },
			func(m *dns.Msg) { m.Question = append(m.Question, m.Question...) }, func(m *dns.Msg) { m.Question = nil },
		} {
			m := &dns.Msg{MsgHdr: dns.MsgHdr{Id: 1, RecursionDesired: true}, Question: []dns.Question{q}}
			change(m)
			packet, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(packet)
		}
	}
	f.Add([]byte{})
	f.Add([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01")) // a name that is itself
	log := logrus.New()
	log.SetOutput(io.Discard)
	f.Fuzz(func(t *testing.T, packet []byte) {
		rec := &recorder{}
		r := New(Config{Names: NewNames(), Policy: &policy.Policy{}, Recorder: rec, Log: log, Exists: found})
		reply := r.answer(t.Context(), message{server: netip.MustParseAddrPort("8.8.8.8:53"), packet: packet})
		if len(rec.events) != 1 {
			t.Errorf("%d events for one message", len(rec.events))
		}
		if reply != nil {
			if _, err := reply.Pack(); err != nil {
				t.Errorf("reply %v: %v", reply, err)
			}
		}
	})
}
