package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"

	"agentops/netns"
	"agentops/test/escape/attempt"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The addresses of the arena's two sides. They are of AS112's ranges (RFC 7534,
// RFC 7535), which are of the public internet for every rule, and nobody's.
var (
	arenaHost4, arenaOutside4 = netip.MustParseAddr("192.175.48.2"), netip.MustParseAddr("192.175.48.1")
	arenaHost6, arenaOutside6 = netip.MustParseAddr("2620:4f:8000::2"), netip.MustParseAddr("2620:4f:8000::1")
)

// arena is a host and its outside, for agents to be tried in: two network
// namespaces joined by a link. The host's default routes lead to the outside,
// where every address of the internet is local, so that whatever leaves a run
// arrives there, and nothing reaches a real network.
type arena struct {
	host, outside *netns.Namespace
	watch         *watch
	listeners     []net.Listener
	dns           []*dns.Server
	serving       sync.WaitGroup
}

// newArena makes an arena; all that is seen where it must not be goes to sightings.
func newArena(sightings *sightings) (_ *arena, err error) {
	a := &arena{}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close())
		}
	}()
	if a.host, err = netns.Empty(); err != nil {
		return nil, err
	}
	if a.outside, err = netns.New(); err != nil {
		return nil, err
	}
	if err := a.outside.Do(func() error { return a.link(sightings) }); err != nil {
		return nil, fmt.Errorf("link the arena: %w", err)
	}
	if err := a.host.Do(a.route); err != nil {
		return nil, fmt.Errorf("route the arena: %w", err)
	}
	if err := a.serve(sightings); err != nil {
		return nil, fmt.Errorf("serve in the arena: %w", err)
	}
	return a, nil
}

// link joins the namespaces and begins to watch, before anything can arrive. It
// runs in the outside.
func (a *arena) link(sightings *sightings) error {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer handle.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "outside"
	veth := netlink.NewVeth(attrs)
	veth.PeerName = "host"
	veth.PeerNamespace = netlink.NsFd(int(a.host.File().Fd()))
	if err := handle.LinkAdd(veth); err != nil {
		return fmt.Errorf("make a veth pair: %w", err)
	}
	link, err := handle.LinkByName("outside")
	if err != nil {
		return err
	}
	if a.watch, err = newWatch(link.Attrs(), sightings); err != nil {
		return err
	}
	a.serving.Go(a.watch.run)
	return bringUp(handle, link, arenaOutside4, arenaOutside6, a.outside.IPv6())
}

// route gives the host its addresses and the way to the outside. It runs in the
// host.
func (a *arena) route() error {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer handle.Close()
	lo, err := handle.LinkByName("lo")
	if err == nil {
		err = handle.LinkSetUp(lo)
	}
	if err != nil {
		return err
	}
	link, err := handle.LinkByName("host")
	if err != nil {
		return err
	}
	if err := bringUp(handle, link, arenaHost4, arenaHost6, a.host.IPv6()); err != nil {
		return err
	}
	ways := []netip.Addr{arenaOutside4}
	if a.host.IPv6() {
		ways = append(ways, arenaOutside6)
	}
	for _, way := range ways {
		if err := handle.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: way.AsSlice()}); err != nil {
			return fmt.Errorf("add a default route by %s: %w", way, err)
		}
	}
	return nil
}

func bringUp(handle *netlink.Handle, link netlink.Link, v4, v6 netip.Addr, hasIPv6 bool) error {
	addrs := []netip.Addr{v4}
	if hasIPv6 {
		addrs = append(addrs, v6)
	}
	for _, addr := range addrs {
		bits := addr.BitLen() - 2 // the two ends
		add := &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, addr.BitLen())}, Flags: unix.IFA_F_NODAD}
		if err := handle.AddrAdd(link, add); err != nil {
			return fmt.Errorf("add %s to %s: %w", addr, link.Attrs().Name, err)
		}
	}
	return handle.LinkSetUp(link)
}

// serve starts the allowed host and the name servers of the outside, and on the
// host's own ports those that nobody may reach.
func (a *arena) serve(sightings *sightings) error {
	site, err := a.outside.Listen("tcp4", netip.AddrPortFrom(arenaOutside4, 80))
	if err != nil {
		return err
	}
	a.accept(site, func(conn net.Conn) { serveSite(conn, sightings) })
	families := map[string]netip.Addr{"4": netip.IPv4Unspecified()}
	if a.host.IPv6() {
		families["6"] = netip.IPv6Unspecified()
	}
	for family, any := range families {
		for _, port := range []uint16{22, hostPort} {
			listener, err := a.host.Listen("tcp"+family, netip.AddrPortFrom(any, port))
			if err != nil {
				return err
			}
			a.accept(listener, func(conn net.Conn) {
				sightings.add(sighting{What: fmt.Sprintf("a connection to port %d of the host itself", port)})
				conn.Close()
			})
		}
		// The host's resolver may be one of its own, on loopback, or any other.
		for _, namespace := range []*netns.Namespace{a.host, a.outside} {
			conn, err := namespace.ListenPacket("udp"+family, netip.AddrPortFrom(any, 53))
			if err != nil {
				return err
			}
			server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(answerRebound)}
			a.dns = append(a.dns, server)
			a.serving.Go(func() { _ = server.ActivateAndServe() }) // ends with its socket
		}
	}
	return nil
}

// hostPort is one that the host itself answers at.
const hostPort = 80

// accept gives every connection of a listener to handle, until it is closed.
func (a *arena) accept(listener net.Listener, handle func(net.Conn)) {
	a.listeners = append(a.listeners, listener)
	a.serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go handle(conn)
		}
	})
}

// answerRebound answers for names below attempt.Rebound with the address that
// their first label spells.
func answerRebound(w dns.ResponseWriter, query *dns.Msg) {
	reply := new(dns.Msg).SetReply(query)
	if len(query.Question) == 1 {
		q := query.Question[0]
		if addr, ok := reboundAddress(q.Name); ok {
			header := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET}
			switch {
			case addr.Is4() && q.Qtype == dns.TypeA:
				reply.Answer = append(reply.Answer, &dns.A{Hdr: header, A: addr.AsSlice()})
			case addr.Is6() && q.Qtype == dns.TypeAAAA:
				reply.Answer = append(reply.Answer, &dns.AAAA{Hdr: header, AAAA: addr.AsSlice()})
			}
		} else {
			reply.Rcode = dns.RcodeRefused
		}
	}
	_ = w.WriteMsg(reply) // who asked may be gone
}

// start starts a process on the arena's host.
func (a *arena) start(cmd *exec.Cmd) error { return a.host.Do(cmd.Start) }

// canary listens on an unix socket of the host's, abstract if its name begins
// with @; nobody may connect to it.
func (a *arena) canary(name string, sightings *sightings) error {
	var listener net.Listener
	err := a.host.Do(func() (err error) {
		listener, err = net.Listen("unix", name)
		return err
	})
	if err != nil {
		return fmt.Errorf("listen on a unix socket of the host: %w", err)
	}
	if name[0] != '@' {
		if err := os.Chmod(name, 0o777); err != nil { // every user of the run's
			return errors.Join(err, listener.Close())
		}
	}
	a.accept(listener, func(conn net.Conn) {
		sightings.add(sighting{What: "a connection to the host's unix socket " + name})
		conn.Close()
	})
	return nil
}

// close takes the arena down.
func (a *arena) close() error {
	var errs []error
	for _, listener := range a.listeners {
		errs = append(errs, listener.Close())
	}
	for _, server := range a.dns {
		errs = append(errs, server.PacketConn.Close())
	}
	if a.watch != nil {
		errs = append(errs, a.watch.close())
	}
	a.serving.Wait()
	for _, namespace := range []*netns.Namespace{a.host, a.outside} {
		if namespace != nil {
			errs = append(errs, namespace.Close())
		}
	}
	return errors.Join(errs...)
}

// allowedName says whether runs on the stage may have a name looked up.
func allowedName(name string) bool {
	_, ok := reboundAddress(name)
	return ok || dns.CanonicalName(name) == attempt.Allowed+"."
}
