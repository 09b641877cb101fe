// Package bpf holds the kernel side of a run: the sk_lookup program that
// redirects everything a network namespace sends to the host's listeners, and the
// programs on the run's cgroup that know who sent it.
package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
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
	UDP4, UDP6 syscall.Conn // sockets that get every datagram to the ports of Relayed but 53
	// A nil one, on a host without IPv6, has its packets dropped.

	Relayed []PortRange // none: all datagrams but DNS are refused
}

// PortRange is the ports from First to Last.
type PortRange struct{ First, Last uint16 }

// Redirect is an attached program. The kernel detaches it when the process
// ends, however it ends.
type Redirect struct {
	objects struct {
		redirectPrograms
		redirectMaps
	}
	relayed portSet
	link    *link.NetNsLink
	reader  *ringbuf.Reader
}

// AttachRedirect loads the program and attaches it to the namespace.
func AttachRedirect(opts RedirectOptions) (_ *Redirect, err error) {
	spec, err := loadRedirect()
	if err != nil {
		return nil, fmt.Errorf("read the redirect program: %w", err)
	}
	r := &Redirect{relayed: newPortSet(opts.Relayed)}
	err = errors.Join(
		spec.Variables[redirectVarOwnAddr4].Set(opts.Own4.As4()),
		spec.Variables[redirectVarOwnAddr6].Set(opts.Own6.As16()),
		spec.Variables[redirectVarRelayedPorts].Set(r.relayed),
	)
	if err != nil {
		return nil, fmt.Errorf("configure the redirect program: %w", err)
	}
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
	for i, conn := range []syscall.Conn{opts.TCP4, opts.TCP6, opts.DNS4, opts.DNS6, opts.UDP4, opts.UDP6} {
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

// portSet has a bit for each port.
type portSet [1 << 16 / 8]byte

func newPortSet(ranges []PortRange) (set portSet) {
	for _, r := range ranges {
		for port := int(r.First); port <= int(r.Last); port++ {
			set[port>>3] |= 1 << (port & 7)
		}
	}
	return set
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

// Attached returns an error when the program is no longer attached: root on the
// host can take it off.
func (r *Redirect) Attached() error {
	info, err := r.link.Info()
	if err != nil {
		return fmt.Errorf("look at the redirect's link: %w", err)
	}
	if info.NetNs().NetnsInode == 0 {
		return errors.New("the redirect was detached from the run's network namespace")
	}
	return nil
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
	return errors.Join(append(errs, r.objects.redirectPrograms.Close(), r.objects.redirectMaps.Close())...)
}
