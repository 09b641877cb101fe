// Package bpf holds the kernel side of a run: the sk_lookup program that
// redirects everything a network namespace sends to the host's listeners.
package bpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// MinimumKernel is the first Linux that has sk_lookup.
const MinimumKernel = "5.9"

// ErrUnsupported says that this kernel cannot redirect.
var ErrUnsupported = errors.New("this kernel has no BPF sk_lookup: Linux " + MinimumKernel + " or later is needed")

// Supported reports whether the kernel has what AttachRedirect needs: nil,
// ErrUnsupported, or why it could not be found out.
func Supported() error {
	err := features.HaveProgramType(ebpf.SkLookup)
	if errors.Is(err, ebpf.ErrNotSupported) {
		return ErrUnsupported
	}
	if err != nil {
		return fmt.Errorf("probe for sk_lookup: %w", err)
	}
	return nil
}

// RedirectOptions say which namespace is redirected and to which sockets. All
// sockets must have been opened in that namespace. TCP listeners must not be
// MPTCP sockets, which a SOCKMAP refuses.
type RedirectOptions struct {
	NetNS *os.File   // the namespace
	Own4  netip.Addr // the run's own addresses: like loopback, not redirected
	Own6  netip.Addr

	TCP4, TCP6 syscall.Conn // listeners that get every TCP connection
	DNS4, DNS6 syscall.Conn // sockets bound to port 53 that get every datagram to port 53
	// A nil one, on a host without IPv6, has its packets dropped.
}

// Redirect is an attached program. The kernel detaches it when the process
// ends, however it ends.
type Redirect struct {
	objects redirectObjects
	link    *link.NetNsLink
	reader  *ringbuf.Reader
}

// AttachRedirect loads the program and attaches it to the namespace.
func AttachRedirect(opts RedirectOptions) (_ *Redirect, err error) {
	// Linux before 5.11 charges maps to the locked memory limit.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("raise the locked memory limit for BPF maps: %w", err)
	}
	spec, err := loadRedirect()
	if err != nil {
		return nil, fmt.Errorf("read the redirect program: %w", err)
	}
	own4, own6 := opts.Own4.As4(), opts.Own6.As16()
	if err := errors.Join(spec.Variables[redirectVarOwnAddr4].Set(own4), spec.Variables[redirectVarOwnAddr6].Set(own6)); err != nil {
		return nil, fmt.Errorf("configure the redirect program: %w", err)
	}
	r := &Redirect{}
	if err := spec.LoadAndAssign(&r.objects, nil); err != nil {
		if unsupported := Supported(); unsupported != nil {
			err = unsupported
		}
		return nil, fmt.Errorf("load sk_lookup: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()

	// In the order of redirect.c's enum.
	for i, conn := range []syscall.Conn{opts.TCP4, opts.TCP6, opts.DNS4, opts.DNS6} {
		if conn == nil {
			continue
		}
		if err := insertSocket(r.objects.Sockets, uint32(i), conn); err != nil {
			return nil, fmt.Errorf("put socket %d into the redirect's map: %w", i, err)
		}
	}
	if r.reader, err = ringbuf.NewReader(r.objects.Refusals); err != nil {
		return nil, fmt.Errorf("open the redirect's ring buffer: %w", err)
	}
	if r.link, err = link.AttachNetNs(int(opts.NetNS.Fd()), r.objects.Redirect); err != nil {
		return nil, fmt.Errorf("attach sk_lookup to %s: %w", opts.NetNS.Name(), err)
	}
	return r, nil
}

func insertSocket(sockets *ebpf.Map, index uint32, conn syscall.Conn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var putErr error
	if err := raw.Control(func(fd uintptr) { putErr = sockets.Put(index, uint64(fd)) }); err != nil {
		return err
	}
	return putErr
}

// Counts are the program's counters since it was attached.
type Counts struct {
	TCP     uint64 // segments given to the TCP listeners: openings of connections, and late ones
	DNS     uint64 // datagrams given to the DNS sockets
	Refused uint64 // datagrams refused
	Lost    uint64 // refused datagrams that no Refusal tells of, for want of room
}

// Counts reads the counters.
func (r *Redirect) Counts() (Counts, error) {
	var values [4]uint64
	for i := range values {
		if err := r.objects.Counts.Lookup(uint32(i), &values[i]); err != nil {
			return Counts{}, fmt.Errorf("read the redirect's counters: %w", err)
		}
	}
	return Counts{TCP: values[0], DNS: values[1], Refused: values[2], Lost: values[3]}, nil
}

// Refusal is one refused datagram.
type Refusal struct {
	Protocol    string // "udp", or "proto-N" for the number N of IANA's protocol registry
	Source      netip.AddrPort
	Destination netip.AddrPort
}

// Refusals calls handle for every refused datagram until ctx ends or handle
// fails. Refusals that were in the buffer when ctx ended are handled first.
func (r *Redirect) Refusals(ctx context.Context, handle func(Refusal) error) error {
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
		refusal, err := parseRefusal(record.RawSample)
		if err != nil {
			return err
		}
		if err := handle(refusal); err != nil {
			return err
		}
	}
}

func parseRefusal(sample []byte) (Refusal, error) {
	var raw redirectRefusal
	if _, err := binary.Decode(sample, binary.NativeEndian, &raw); err != nil {
		return Refusal{}, fmt.Errorf("parse a refusal of %d bytes: %w", len(sample), err)
	}
	protocol := "udp"
	if raw.Protocol != unix.IPPROTO_UDP {
		protocol = fmt.Sprintf("proto-%d", raw.Protocol)
	}
	// The sender's port is in network byte order, the destination's is not.
	source := raw.SourcePort<<8 | raw.SourcePort>>8
	return Refusal{
		Protocol:    protocol,
		Source:      netip.AddrPortFrom(address(raw.Family, raw.Source), source),
		Destination: netip.AddrPortFrom(address(raw.Family, raw.Destination), uint16(raw.DestinationPort)),
	}, nil
}

// address reads words that hold an address in network byte order.
func address(family uint32, words [4]uint32) netip.Addr {
	var bytes [16]byte
	for i, word := range words {
		binary.NativeEndian.PutUint32(bytes[4*i:], word)
	}
	if family == unix.AF_INET {
		return netip.AddrFrom4([4]byte(bytes[:4]))
	}
	return netip.AddrFrom16(bytes)
}

// Close detaches the program and frees its maps. It may be called again.
func (r *Redirect) Close() error {
	var errs []error
	if r.link != nil {
		errs = append(errs, r.link.Close())
	}
	if r.reader != nil {
		errs = append(errs, r.reader.Close())
	}
	return errors.Join(append(errs, r.objects.Close())...)
}
