package resolver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

const (
	maxConcurrent = 256 // questions over UDP that are being looked up
	tcpIdle       = 10 * time.Second
	udpSize       = 512 // of a reply to a client without EDNS (RFC 1035)
)

// ServeUDP answers datagrams until ctx ends. Each reply leaves from the address
// that was asked, whatever the socket is bound to.
func (r *Resolver) ServeUDP(ctx context.Context, conn *net.UDPConn) error {
	v4 := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Is4()
	if err := wantDestination(conn, v4); err != nil {
		return fmt.Errorf("ask for the destination of datagrams: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	var pending sync.WaitGroup
	defer pending.Wait()
	room := make(chan struct{}, maxConcurrent)
	buf, control := make([]byte, 64<<10), make([]byte, 128)
	for {
		n, controlLen, _, from, err := conn.ReadMsgUDPAddrPort(buf, control)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("read DNS queries: %w", err)
		}
		asked, reply, err := destination(control[:controlLen], v4)
		if err != nil {
			return fmt.Errorf("read the destination of a DNS query: %w", err)
		}
		r.received.Add(1)
		m := message{server: netip.AddrPortFrom(asked, 53), packet: append([]byte(nil), buf[:n]...)}
		if r.config.Sender != nil {
			m.process = r.config.Sender(from, m.server)
		}
		room <- struct{}{}
		pending.Go(func() {
			defer func() { <-room }()
			r.answerUDP(ctx, conn, from, m, reply)
		})
	}
}

func (r *Resolver) answerUDP(ctx context.Context, conn *net.UDPConn, from netip.AddrPort, m message, control []byte) {
	reply := r.answer(ctx, m)
	if reply == nil {
		return
	}
	size := udpSize
	if opt := reply.IsEdns0(); opt != nil {
		size = int(opt.UDPSize())
	}
	reply.Truncate(size)
	data, err := reply.Pack()
	if err != nil {
		r.config.Log.WithError(err).Warn("pack a DNS reply")
		return
	}
	// The client may be gone; it is for it to ask again.
	if _, _, err := conn.WriteMsgUDPAddrPort(data, control, from); err != nil {
		r.config.Log.WithError(err).Debug("send a DNS reply")
	}
}

// ServeTCP answers the messages on one connection, a flow to server, until it ends.
func (r *Resolver) ServeTCP(ctx context.Context, conn net.Conn, flow uint64, server netip.AddrPort) error {
	var length [2]byte
	for {
		if err := conn.SetReadDeadline(time.Now().Add(tcpIdle)); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, length[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		packet := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(conn, packet); err != nil {
			return err
		}
		reply := r.answer(ctx, message{flow: flow, server: server, packet: packet})
		if reply == nil {
			return nil
		}
		data, err := reply.Pack()
		if err != nil {
			return fmt.Errorf("pack a DNS reply: %w", err)
		}
		framed := append(binary.BigEndian.AppendUint16(nil, uint16(len(data))), data...)
		if _, err := conn.Write(framed); err != nil {
			return err
		}
	}
}

func wantDestination(conn *net.UDPConn, v4 bool) error {
	if v4 {
		return ipv4.NewPacketConn(conn).SetControlMessage(ipv4.FlagDst, true)
	}
	return ipv6.NewPacketConn(conn).SetControlMessage(ipv6.FlagDst, true)
}

// destination reads the address that a datagram was sent to, and returns the
// control message that sends the reply from there.
func destination(control []byte, v4 bool) (asked netip.Addr, reply []byte, err error) {
	var ip net.IP
	if v4 {
		var cm ipv4.ControlMessage
		err = cm.Parse(control)
		ip, reply = cm.Dst, (&ipv4.ControlMessage{Src: cm.Dst}).Marshal()
	} else {
		var cm ipv6.ControlMessage
		err = cm.Parse(control)
		ip, reply = cm.Dst, (&ipv6.ControlMessage{Src: cm.Dst}).Marshal()
	}
	asked, ok := netip.AddrFromSlice(ip)
	if err == nil && !ok {
		err = errors.New("the kernel has not told it")
	}
	return asked.Unmap(), reply, err
}
