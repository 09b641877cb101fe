package bpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// Counts are the kernel's own, of what a run has sent.
type Counts struct {
	TCP     uint64 // connections that the run has established to the proxy
	DNS     uint64 // datagrams that the run has sent to the DNS sockets
	Relayed uint64 // datagrams that the run has sent to the UDP sockets
	Refused uint64 // datagrams refused, and connections to addresses that no one host has
	Lost    uint64 // of those, the ones that no Refusal tells of, for want of room
}

// Counts reads the counters.
func (r *Redirect) Counts() (Counts, error) {
	var values [5]uint64
	for i := range values {
		if err := r.objects.Counts.Lookup(uint32(i), &values[i]); err != nil {
			return Counts{}, fmt.Errorf("read the redirect's counters: %w", err)
		}
	}
	return Counts{TCP: values[0], DNS: values[1], Relayed: values[2], Refused: values[3], Lost: values[4]}, nil
}

// Refusal is one datagram, or one attempt to connect, that the kernel refused.
type Refusal struct {
	Protocol    string         // "tcp", "udp", or "proto-N" for the number N of IANA's protocol registry
	Source      netip.AddrPort // invalid for one that was refused before it had one
	Destination netip.AddrPort
	Process     *Process // nil: not known
}

// Refusals calls handle for every refusal until ctx ends or handle fails. Refusals
// that were in the buffer when ctx ended are handled first. observer names the
// processes.
func (r *Redirect) Refusals(ctx context.Context, observer *Observer, handle func(Refusal) error) error {
	// A flush wakes the reader, which then drains the buffer. It fails only on a
	// closed reader, which wakes it as well.
	stop := context.AfterFunc(ctx, func() { _ = r.reader.Flush() })
	defer stop()
	var record ringbuf.Record
	for {
		if err := r.reader.ReadInto(&record); err != nil {
			if errors.Is(err, ringbuf.ErrFlushed) || errors.Is(err, ringbuf.ErrClosed) {
				return nil
			}
			return fmt.Errorf("read the redirect's ring buffer: %w", err)
		}
		var raw redirectRefusal
		if _, err := binary.Decode(record.RawSample, binary.NativeEndian, &raw); err != nil {
			return fmt.Errorf("parse a refusal of %d bytes: %w", len(record.RawSample), err)
		}
		refusal := parseRefusal(raw)
		if raw.Owner.Image.Pid != 0 {
			process := observer.process(observeOwner{
				Image: observeImage(raw.Owner.Image), Parent: raw.Owner.Parent, Uid: raw.Owner.Uid, Comm: raw.Owner.Comm,
			})
			refusal.Process = &process
		}
		if err := handle(refusal); err != nil {
			return err
		}
	}
}

func parseRefusal(raw redirectRefusal) Refusal {
	var protocol string
	switch raw.Flow.Protocol {
	case unix.IPPROTO_TCP:
		protocol = "tcp"
	case unix.IPPROTO_UDP:
		protocol = "udp"
	default:
		protocol = fmt.Sprintf("proto-%d", raw.Flow.Protocol)
	}
	r := Refusal{
		Protocol:    protocol,
		Destination: netip.AddrPortFrom(address(raw.Flow.Family, raw.Flow.Destination), networkOrder(raw.Flow.DestinationPort)),
	}
	if raw.Flow.Source != [4]uint32{} {
		r.Source = netip.AddrPortFrom(address(raw.Flow.Family, raw.Flow.Source), networkOrder(raw.Flow.SourcePort))
	}
	return r
}

// address reads words that hold an address in network byte order.
func address(family uint16, words [4]uint32) netip.Addr {
	var bytes [16]byte
	for i, word := range words {
		binary.NativeEndian.PutUint32(bytes[4*i:], word)
	}
	if family == unix.AF_INET {
		return netip.AddrFrom4([4]byte(bytes[:4]))
	}
	return netip.AddrFrom16(bytes)
}

// words is the reverse of address.
func words(addr netip.Addr) (words [4]uint32) {
	bytes := addr.AsSlice()
	for i := range len(bytes) / 4 {
		words[i] = binary.NativeEndian.Uint32(bytes[4*i:])
	}
	return words
}
