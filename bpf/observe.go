package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// ObserverOptions configure an Observer.
type ObserverOptions struct {
	Redirect   *Redirect // of the run's namespace: the two count together
	Own4, Own6 netip.Addr
	Layout     Layout // of the running kernel
	// Credentials is the port of the credential server on 127.0.0.1.
	Credentials uint16
}

// Observer knows which process of a run makes which connection. The kernel
// detaches its programs when the process ends, however it ends.
type Observer struct {
	objects struct {
		observePrograms
		observeMaps
	}
	links []link.Link

	mu    sync.Mutex
	paths map[observeImage]string // of executables that were asked for lately
}

// maxPaths bounds what is kept of executables.
const maxPaths = 128

// Process is a process of a run.
type Process struct {
	PID, Parent int // in the host's numbers
	UID         uint32
	Comm        string
	Exe         string // path of the executable, as the run sees it; "…" before one of too many names
}

// LoadObserver loads the programs. They observe nothing yet.
func LoadObserver(opts ObserverOptions) (*Observer, error) {
	spec, err := loadObserve()
	if err != nil {
		return nil, fmt.Errorf("read the observer's programs: %w", err)
	}
	err = errors.Join(
		spec.Variables[observeVarOwnAddr4].Set(opts.Own4.As4()),
		spec.Variables[observeVarOwnAddr6].Set(opts.Own6.As16()),
		spec.Variables[observeVarRelayedPorts].Set(opts.Redirect.relayed),
		spec.Variables[observeVarKernel].Set(opts.Layout),
		spec.Variables[observeVarCredentialPort].Set(networkOrder(opts.Credentials)),
	)
	if err != nil {
		return nil, fmt.Errorf("configure the observer's programs: %w", err)
	}
	o := &Observer{paths: make(map[observeImage]string)}
	shared := opts.Redirect.objects.redirectMaps
	err = spec.LoadAndAssign(&o.objects, &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{
		observeMapCounts: shared.Counts, observeMapDatagrams: shared.Datagrams, observeMapRefusals: shared.Refusals,
	}})
	if err != nil {
		return nil, fmt.Errorf("load the observer's programs: %w", err)
	}
	return o, nil
}

// Attach makes the observer see the processes of a cgroup of version 2, which is
// named by its folder.
func (o *Observer) Attach(cgroup string) error {
	for _, p := range []struct {
		attach  ebpf.AttachType
		program *ebpf.Program
	}{
		{ebpf.AttachCGroupInet4Connect, o.objects.ObserveConnect4},
		{ebpf.AttachCGroupInet6Connect, o.objects.ObserveConnect6},
		{ebpf.AttachCGroupInetEgress, o.objects.ObserveEgress},
	} {
		attached, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: p.attach, Program: p.program})
		if err != nil {
			return fmt.Errorf("attach %s to %s: %w", p.attach, cgroup, err)
		}
		o.links = append(o.links, attached)
	}
	return nil
}

// networkOrder is a port as the kernel's structures hold it.
func networkOrder(port uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, port))
}

// TCPOwner is the process that made a connection, which has just been accepted. It
// is known for the time that takes, and no longer.
func (o *Observer) TCPOwner(source, destination netip.AddrPort) (Process, bool) {
	key := flowKey(unix.IPPROTO_TCP, source, destination)
	var owner observeOwner
	err := o.objects.Connections.LookupAndDelete(&key, &owner)
	if errors.Is(err, ebpf.ErrNotSupported) { // before Linux 5.14
		if err = o.objects.Connections.Lookup(&key, &owner); err == nil {
			_ = o.objects.Connections.Delete(&key) // it was just there
		}
	}
	if err != nil {
		return Process{}, false
	}
	return o.process(owner), true
}

// UDPOwner is the process that sent a datagram, which has just been received.
func (o *Observer) UDPOwner(source, destination netip.AddrPort) (Process, bool) {
	key := flowKey(unix.IPPROTO_UDP, source, destination)
	var owner observeOwner
	if err := o.objects.Datagrams.Lookup(&key, &owner); err != nil {
		return Process{}, false
	}
	return o.process(owner), true
}

func flowKey(protocol uint16, source, destination netip.AddrPort) observeFlow {
	key := observeFlow{
		Source: words(source.Addr()), Destination: words(destination.Addr()),
		SourcePort: networkOrder(source.Port()), DestinationPort: networkOrder(destination.Port()),
		Family: unix.AF_INET6, Protocol: protocol,
	}
	if source.Addr().Is4() {
		key.Family = unix.AF_INET
	}
	return key
}

// process adds what is known of an owner's executable.
func (o *Observer) process(owner observeOwner) Process {
	p := Process{
		PID:    int(owner.Image.Pid),
		Parent: int(owner.Parent),
		UID:    owner.Uid,
		Comm:   cString(owner.Comm[:]),
	}
	p.Exe = o.executable(owner.Image)
	return p
}

func (o *Observer) executable(image observeImage) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if path, ok := o.paths[image]; ok {
		return path
	}
	var executable observeExecutable
	if err := o.objects.Executables.Lookup(&image, &executable); err != nil {
		// It was refused before it had sent anything.
		return executableOf(image)
	}
	if len(o.paths) == maxPaths {
		clear(o.paths)
	}
	path := joinPath(executable)
	o.paths[image] = path
	return path
}

// executableOf is the executable of a process that still runs; empty when it does
// not.
func executableOf(image observeImage) string {
	process := fmt.Sprintf("/proc/%d/", image.Pid)
	exe, err := os.Readlink(process + "exe")
	if err != nil {
		return ""
	}
	// Is it the same one still? The kernel tells its start in hundredths of a
	// second, the 22nd field of stat; the second may hold spaces.
	stat, err := os.ReadFile(process + "stat")
	if err != nil {
		return ""
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 || fields[19] != strconv.FormatUint(image.Started/1e7, 10) {
		return ""
	}
	return exe
}

// joinPath makes a path of names that were read from its end.
func joinPath(e observeExecutable) string {
	path := ""
	for _, chars := range e.Names[:min(int(e.Depth), len(e.Names))] {
		if name := cString(chars[:]); name != "" {
			path = "/" + name + path
		}
	}
	if e.Complete == 0 {
		path = "…" + path
	}
	return path
}

// cString reads characters up to a NUL.
func cString(chars []int8) string {
	text := make([]byte, len(chars))
	for i, c := range chars {
		text[i] = byte(c)
	}
	before, _, _ := bytes.Cut(text, []byte{0})
	return string(before)
}

// Attached returns an error when one of the programs is no longer attached: root on
// the host can take them off, or remove the cgroup.
func (o *Observer) Attached() error {
	for _, l := range o.links {
		info, err := l.Info()
		if err != nil {
			return fmt.Errorf("look at the observer's links: %w", err)
		}
		if info.Cgroup().CgroupId == 0 {
			return errors.New("the observer was detached from the run's cgroup")
		}
	}
	return nil
}

// Close detaches the programs and frees their maps. It may be called again.
func (o *Observer) Close() error {
	var errs []error
	for _, l := range o.links {
		errs = append(errs, l.Close())
	}
	o.links = nil
	return errors.Join(append(errs, o.objects.observePrograms.Close(), o.objects.observeMaps.Close())...)
}
