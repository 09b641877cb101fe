// Package resolver is the DNS server of a run: every name gets a synthetic
// address of its own, so that a connection of any protocol is tied to a name.
package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"agentops/audit"
	"agentops/mitm/policy"

	"github.com/miekg/dns"
	"github.com/sirupsen/logrus"
)

const (
	answerTTL     = 60 // seconds; an address stays its name's for the whole run
	lookupTimeout = 5 * time.Second
)

// Recorder takes events into the run's journal.
type Recorder interface {
	Append(audit.Event) error
}

// Config configures a Resolver.
type Config struct {
	Names    *Names
	Policy   *policy.Policy
	Recorder Recorder
	Log      logrus.FieldLogger
	// Exists looks an allowed name up outside, so that the run is told when
	// there is none: nil, an error that is a *net.DNSError with IsNotFound,
	// or another, which the run sees as a failure of the server.
	Exists func(ctx context.Context, name string) error
	// Sender names the process that has just sent a datagram; nil: not known.
	Sender func(source, destination netip.AddrPort) *audit.Process
	// Self is the run's own host name, and Own its addresses.
	Self string
	Own  []netip.Addr
}

// Resolver answers a run's DNS questions.
type Resolver struct {
	config   Config
	received atomic.Uint64
}

// New makes a resolver.
func New(config Config) *Resolver {
	return &Resolver{config: config}
}

// Received is how many datagrams have come so far.
func (r *Resolver) Received() uint64 { return r.received.Load() }

// message is what came in a datagram, or over a connection.
type message struct {
	flow    uint64         // of the connection; 0: a datagram
	server  netip.AddrPort // that was asked
	process *audit.Process // that sent the datagram
	packet  []byte
}

func (m *message) transport() string {
	if m.flow != 0 {
		return "tcp"
	}
	return "udp"
}

// answer makes the reply to one message and records it. A nil reply is no answer
// at all: for what is no question, and when it cannot be recorded.
func (r *Resolver) answer(ctx context.Context, m message) *dns.Msg {
	query := new(dns.Msg)
	if err := query.Unpack(m.packet); err != nil || query.Response {
		r.config.Log.WithField("server", m.server).Debug("a message to port 53 that is no DNS query")
		return r.unreadable(m, query)
	}
	event := audit.DNSQuery{Flow: m.flow, Transport: m.transport(), Server: m.server.String(), Answers: []string{}, Process: m.process}
	reply := new(dns.Msg).SetReply(query)
	reply.RecursionAvailable = true
	reply.Compress = true
	switch {
	case query.Opcode != dns.OpcodeQuery:
		reply.Rcode = dns.RcodeNotImplemented
	case len(query.Question) != 1:
		reply.Rcode = dns.RcodeFormatError
	case query.Question[0].Qclass != dns.ClassINET:
		reply.Rcode = dns.RcodeRefused
	default:
		r.resolve(ctx, query.Question[0], reply, &event)
	}
	if len(query.Question) > 0 {
		event.Name = query.Question[0].Name
		event.QType = typeName(query.Question[0].Qtype)
	}
	if opt := query.IsEdns0(); opt != nil {
		reply.SetEdns0(1232, false)
	}
	event.RCode = dns.RcodeToString[reply.Rcode]
	for _, rr := range reply.Answer {
		event.Answers = append(event.Answers, rdata(rr))
	}
	if err := r.config.Recorder.Append(event); err != nil {
		return nil
	}
	return reply
}

// unreadable records what is no query: port 53 is no way to send other things
// unseen. It goes nowhere.
func (r *Resolver) unreadable(m message, query *dns.Msg) *dns.Msg {
	err := r.config.Recorder.Append(audit.Refused{
		Flow:        m.flow,
		Protocol:    "dns",
		Destination: m.server.String(),
		Host:        m.server.Addr().String(),
		Port:        m.server.Port(),
		Reason:      string(policy.Malformed),
		Detail:      fmt.Sprintf("%d bytes over %s that are no DNS query", len(m.packet), m.transport()),
		Process:     m.process,
	})
	if err != nil || query.Response || len(m.packet) < 12 {
		return nil
	}
	reply := new(dns.Msg)
	reply.Id, reply.Response, reply.Rcode = query.Id, true, dns.RcodeFormatError
	return reply
}

// resolve fills in the reply to one question of class IN.
func (r *Resolver) resolve(ctx context.Context, q dns.Question, reply *dns.Msg, event *audit.DNSQuery) {
	if q.Qtype == dns.TypePTR {
		r.reverse(q, reply)
		return
	}
	name, err := policy.Host(q.Name)
	if err != nil {
		reply.Rcode = dns.RcodeNameError // no such name can be
		return
	}
	if addrs, ok := r.local(name); ok {
		for _, addr := range addrs {
			addAddress(reply, q, addr)
		}
		return
	}
	// Services are at their name's own address and port: an SVCB or HTTPS record
	// would lead to another, or bring keys for encrypted client hellos. The
	// same goes for any other type: there is data in it, and nothing to dial.
	if q.Qtype != dns.TypeA && q.Qtype != dns.TypeAAAA {
		return
	}
	if verdict := r.config.Policy.DecideHost(name); !verdict.Allowed {
		// It is not looked up, which would send it out; it gets an
		// address, so that what connects there is refused with words.
		event.Reason, event.Rule = string(verdict.Reason), verdict.Rule
	} else if !r.config.Names.Known(name) {
		if reply.Rcode = r.lookUp(ctx, name); reply.Rcode != dns.RcodeSuccess {
			return
		}
	}
	v4, v6, err := r.config.Names.Addresses(name)
	if err != nil {
		r.config.Log.WithField("name", name).Warn(err)
		reply.Rcode = dns.RcodeServerFailure
		return
	}
	addAddress(reply, q, v4)
	addAddress(reply, q, v6)
}

// local knows the names that do not leave the run (RFC 6761, section 6.3).
func (r *Resolver) local(name string) ([]netip.Addr, bool) {
	switch {
	case name == "localhost" || strings.HasSuffix(name, ".localhost"):
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, true
	case r.config.Self != "" && name == r.config.Self:
		return r.config.Own, true
	}
	return nil, false
}

func (r *Resolver) lookUp(ctx context.Context, name string) (rcode int) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	err := r.config.Exists(ctx, name)
	if err == nil {
		return dns.RcodeSuccess
	}
	if dnsErr, ok := errors.AsType[*net.DNSError](err); ok && dnsErr.IsNotFound {
		return dns.RcodeNameError
	}
	r.config.Log.WithError(err).Warn("look up a name for the run")
	return dns.RcodeServerFailure
}

// reverse answers for synthetic addresses; nobody outside is asked for others.
func (r *Resolver) reverse(q dns.Question, reply *dns.Msg) {
	addr, ok := parseReverse(q.Name)
	if !ok {
		reply.Rcode = dns.RcodeNameError
		return
	}
	name, _ := r.config.Names.Name(addr)
	if name == "" {
		reply.Rcode = dns.RcodeNameError
		return
	}
	reply.Answer = append(reply.Answer, &dns.PTR{Hdr: header(q, dns.TypePTR), Ptr: dns.Fqdn(name)})
}

// parseReverse reads "4.3.2.1.in-addr.arpa." and its like for IPv6.
func parseReverse(name string) (netip.Addr, bool) {
	name = strings.ToLower(name)
	if labels, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		parts := strings.Split(labels, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		addr, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
		return addr, err == nil
	}
	labels, ok := strings.CutSuffix(name, ".ip6.arpa.")
	if !ok || len(labels) != 63 {
		return netip.Addr{}, false
	}
	var text strings.Builder
	for i := 62; i >= 0; i -= 2 {
		text.WriteByte(labels[i])
		if nibble := (62 - i) / 2; nibble%4 == 3 && nibble != 31 {
			text.WriteByte(':')
		}
	}
	addr, err := netip.ParseAddr(text.String())
	return addr, err == nil
}

// addAddress adds an address to the reply if the question is for its family.
func addAddress(reply *dns.Msg, q dns.Question, addr netip.Addr) {
	switch {
	case q.Qtype == dns.TypeA && addr.Is4():
		reply.Answer = append(reply.Answer, &dns.A{Hdr: header(q, dns.TypeA), A: addr.AsSlice()})
	case q.Qtype == dns.TypeAAAA && addr.Is6():
		reply.Answer = append(reply.Answer, &dns.AAAA{Hdr: header(q, dns.TypeAAAA), AAAA: addr.AsSlice()})
	}
}

func header(q dns.Question, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: q.Name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: answerTTL}
}

func rdata(rr dns.RR) string {
	return strings.TrimPrefix(rr.String(), rr.Header().String())
}

func typeName(qtype uint16) string {
	if name, ok := dns.TypeToString[qtype]; ok {
		return name
	}
	return fmt.Sprintf("TYPE%d", qtype) // RFC 3597
}
