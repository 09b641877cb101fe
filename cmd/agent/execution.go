package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"agentops/audit"
	"agentops/bpf"
	"agentops/helper"
	"agentops/mitm"
	"agentops/mitm/authority"
	"agentops/mitm/policy"
	"agentops/mitm/resolver"
	"agentops/netns"
	"agentops/runtime"
	"agentops/runtime/sysmon"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// execution is a run that goes on: all that it holds, in the order in which it
// was acquired.
type execution struct {
	env         *env
	spec        *runSpec
	log         *logrus.Logger
	books       *books
	claim       *runtime.Claim
	boundary    *boundary
	credentials *credentials
	folder      string
	logFile     *os.File
	journal     *audit.Journal
	authority   *authority.Authority
	container   *runtime.Container
	started     bool // the container was let go: from here on the journal tells all

	serving    sync.WaitGroup
	stop       context.CancelCauseFunc // ends what serves
	stopped    context.Context
	terminated chan struct{} // closed when the container has ended

	// taken is how many connections and datagrams of the run were taken so far.
	taken func() (flows, datagrams, relayed uint64)
}

// errOver ends what serves a run at the run's end.
var errOver = errors.New("the run is over")

// execute runs a command and returns its exit code. An error is ours: the command
// did not start, or was ended for it.
func (e *env) execute(ctx context.Context, spec *runSpec) (code int, err error) {
	hurry()
	r := &execution{env: e, spec: spec, log: e.logger()}
	r.stopped, r.stop = context.WithCancelCause(ctx)
	began := time.Now()
	if err := r.begin(); err != nil {
		return exitOurs, errors.Join(err, r.end())
	}
	status, err := r.perform()
	if !r.started {
		return exitOurs, errors.Join(err, r.abandon())
	}
	exit := audit.RunExit{ExitCode: status.Code, DurationMS: time.Since(began).Milliseconds()}
	if status.Signal != nil {
		exit.Signal = unix.SignalName(status.Signal.(syscall.Signal))
	}
	if err != nil {
		exit.ExitCode, exit.Error = exitOurs, err.Error()
	}
	err = errors.Join(err, r.finish(&exit))
	if err != nil {
		return exitOurs, err
	}
	e.summarize(r, status.Code)
	if differences := exit.Kernel.Differences(exit.Totals.Counts); len(differences) > 0 {
		err := fmt.Errorf("the record of run %s is not complete: %s", r.spec.id, strings.Join(differences, "; "))
		if status.Code == 0 {
			return exitOurs, err
		}
		e.report(err) // the command's own failure comes first
	}
	return status.Code, nil
}

// hurry lets a start, and what is over a second later, do without the garbage
// collector, which would take a tenth of the time. Go's own watch is slow already.
func hurry() {
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(roomy) // beyond which it does collect
}

// settle ends that. What lasts has the collector seldom, for it costs requests;
// tend bounds what that takes, and gives back what the start has left.
func settle() {
	const seldom = 400 // percent of what is in use
	debug.SetGCPercent(seldom)
	sysmon.Restore()
}

// begin acquires what a run needs before its first event: a name, the boundary,
// credentials, and its journal. It fails without a trace.
func (r *execution) begin() error {
	// What nobody else can see: the namespace, which waits for the kernel, and the keys.
	made := make(chan error, 2)
	go func() {
		var err error
		r.boundary, err = newBoundary(r.spec.policy.UDPPorts())
		made <- err
	}()
	go func() {
		var err error
		r.authority, err = authority.New(r.spec.id)
		made <- err
	}()
	err := r.takeName()
	if err == nil {
		owner := func(source, destination netip.AddrPort) *audit.Process { return r.boundary.owner(source, destination) }
		r.credentials, err = r.env.fetchCredentials(r.stopped, r.spec, owner, r.log)
	}
	if err == nil {
		err = r.openJournal()
	}
	if err = errors.Join(err, <-made, <-made); err != nil && r.folder != "" {
		_ = os.RemoveAll(r.folder)
	}
	return err
}

// openJournal makes the run's folder, and in it the journal and the log.
func (r *execution) openJournal() (err error) {
	if r.folder, err = r.env.makeRunFolder(r.spec.id); err != nil {
		return err
	}
	r.journal, err = audit.Create(filepath.Join(r.folder, journalName), r.spec.id)
	if err == nil {
		err = r.openLog()
	}
	if err == nil {
		err = r.journal.Append(r.spec.recorded)
	}
	if err == nil {
		err = r.credentials.events.to(r.journal)
	}
	if err != nil {
		return stateError(err)
	}
	return nil
}

// takeName clears away what others have left, and takes the run's name.
func (r *execution) takeName() (err error) {
	if r.books, err = r.env.openBooks(); err != nil {
		return err
	}
	err = runtime.Sweep(r.env.runDir(), func(left runtime.Record) error { return r.books.closeInterrupted(left.ID, left.Folder) })
	if err != nil {
		r.log.WithError(err).Warn("what interrupted runs have left could not all be removed")
	}
	record := runtime.Record{ID: r.spec.id, PID: os.Getpid(), Folder: r.env.runFolder(r.spec.id)}
	r.claim, err = runtime.TakeClaim(r.env.runDir(), r.spec.name, record)
	if _, busy := errors.AsType[*runtime.BusyError](err); busy {
		return withHint(err, "choose another --name, or wait for it to end")
	}
	return err
}

// openLog turns the run's log to a file: stderr is the command's from now on, and
// takes only errors.
func (r *execution) openLog() (err error) {
	r.logFile, err = os.OpenFile(filepath.Join(r.folder, logName), os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	r.log.SetOutput(r.logFile)
	r.log.AddHook(errorsTo{r.env.stderr})
	return nil
}

// perform runs the command within the boundary and returns how it ended.
func (r *execution) perform() (status runtime.Status, err error) {
	layout, err := r.env.kernelLayout()
	if err != nil {
		return status, err
	}
	// Two things that wait for the kernel most of their time, side by side.
	attached, cgroup := make(chan error, 1), make(chan string, 1)
	go func() { attached <- r.boundary.attach(layout, cgroup) }()
	config := r.containerConfig()
	config.Cgroup = func(folder string) { cgroup <- folder }
	r.container, err = runtime.Create(config)
	close(cgroup)
	if err = errors.Join(err, <-attached); err != nil {
		return status, err
	}
	// Before the servers wait in the kernel, and with them the threads that Go hands
	// each kind of signal over by.
	stopSignals := r.forwardSignals()
	defer stopSignals()
	r.serve()
	r.terminated = make(chan struct{})
	r.serving.Go(r.watch)
	r.started = true
	time.AfterFunc(time.Second, settle)
	if err = r.container.Start(); err == nil {
		status, err = r.container.Wait()
	}
	close(r.terminated)
	// What ended the run, if it was not the command.
	if cause := context.Cause(r.stopped); cause != nil {
		return status, cause
	}
	return status, err
}

// attachedEvery is how often it is looked whether the boundary's programs are in
// place. Without them nothing leaves the run, but nor is it recorded.
const attachedEvery = time.Second

// watch ends the container when the run may not go on.
func (r *execution) watch() {
	ticker := time.NewTicker(attachedEvery)
	defer ticker.Stop()
	for {
		select {
		case <-r.journal.Failed():
			r.stop(fmt.Errorf("the run was ended, since what it does can no longer be recorded: %w", r.journal.Err()))
		case <-ticker.C:
			err := r.boundary.attached()
			if err == nil {
				continue
			}
			r.stop(fmt.Errorf("the run was ended: %w", err))
		case <-r.stopped.Done():
		case <-r.terminated:
			return
		}
		break
	}
	if err := r.container.Kill(); err != nil {
		r.log.WithError(err).Error("end the run")
	}
}

// serve starts what answers the run. If one of them fails, the run ends.
func (r *execution) serve() {
	names := resolver.NewNames()
	dialer := mitm.NewDialer(r.spec.pins, &r.spec.policy)
	self, err := policy.Host(r.spec.name)
	if err != nil {
		self = "" // a name that is no host name needs no address
	}
	dns := resolver.New(resolver.Config{
		Names: names, Policy: &r.spec.policy, Recorder: r.journal, Log: r.log,
		Sender: r.boundary.sender, Exists: dialer.Exists, Self: self, Own: []netip.Addr{netns.Own4, netns.Own6},
	})
	proxy := mitm.New(mitm.Config{
		Policy: &r.spec.policy, Authority: r.authority, Names: names, Resolver: dns, Dialer: dialer,
		Upstreams: r.spec.roots, Recorder: r.journal, Log: r.log, Owner: r.boundary.owner, Grants: r.spec.headers,
		Limits: r.spec.network, Sender: r.boundary.sender,
	})
	r.taken = func() (flows, datagrams, relayed uint64) { return proxy.Accepted(), dns.Received(), proxy.Received() }
	r.start("the proxy", func() error {
		listeners := make([]net.Listener, len(r.boundary.proxy))
		for i, l := range r.boundary.proxy {
			listeners[i] = l
		}
		return proxy.Serve(r.stopped, listeners...)
	})
	for _, conn := range r.boundary.resolver {
		r.start("the resolver", func() error { return dns.ServeUDP(r.stopped, conn) })
	}
	for _, relay := range r.boundary.relays {
		r.start("the relay of datagrams", func() error { return proxy.ServeDatagrams(r.stopped, relay) })
	}
	r.start("the record of refused datagrams", func() error {
		return r.boundary.redirect.Refusals(r.stopped, r.boundary.observer, func(refusal bpf.Refusal) error {
			name, _ := names.Name(refusal.Destination.Addr())
			return r.recordRefusal(refusal, name)
		})
	})
	r.start("the credential server", func() error {
		return r.credentials.server.Serve(r.stopped, r.boundary.credentials)
	})
	r.start("the bound on memory", func() error { return tend(r.stopped) })
}

// start runs one of the run's servers until the run is over.
func (r *execution) start(what string, serve func() error) {
	r.serving.Go(func() {
		if err := serve(); err != nil {
			r.stop(fmt.Errorf("the run was ended, since %s failed: %w", what, err))
		}
	})
}

// recordRefusal records what the kernel has refused. name is that behind the
// destination; empty: none.
func (r *execution) recordRefusal(refusal bpf.Refusal, name string) error {
	detail := "only TCP, DNS to port 53, and what a udp: rule names leave a run"
	if address := refusal.Destination.Addr(); address.IsMulticast() || address == broadcast {
		detail = "no one host has this address"
	}
	e := audit.Refused{
		Protocol:    refusal.Protocol,
		Destination: refusal.Destination.String(),
		Host:        cmp.Or(name, refusal.Destination.Addr().String()),
		Port:        refusal.Destination.Port(),
		Reason:      audit.ReasonProtocol,
		Detail:      detail,
	}
	if refusal.Process != nil {
		e.Process = recorded(*refusal.Process, true)
	}
	return r.journal.Append(e)
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func (r *execution) recordCall(refusal runtime.Refusal) error {
	return r.journal.Append(audit.Refused{
		Protocol: "syscall",
		Call:     refusal.Call,
		Reason:   "syscall",
		Detail:   refusal.Why,
		Process:  refusal.Process,
	})
}

// containerConfig describes the container of the run.
func (r *execution) containerConfig() runtime.Config {
	own, files := r.credentials.environment(r.boundary.credentials.Addr(), r.spec.rootfs)
	// resolve has seen that the given variables are good.
	variables, _ := runtime.Environ(os.Environ(), r.spec.rootfs, own, r.spec.env)
	c := runtime.Config{
		ID:         r.spec.id,
		Folder:     r.folder,
		Live:       r.claim.Dir(),
		Network:    r.boundary.namespace.Path(),
		Rootfs:     r.spec.rootfs,
		Workspace:  r.spec.workspace,
		Mounts:     r.spec.mounts,
		Limits:     r.spec.limits,
		Command:    r.spec.command,
		Env:        variables,
		Hostname:   r.spec.name,
		Terminal:   r.spec.terminal,
		Stdin:      r.env.stdin,
		Stdout:     asFile(r.env.stdout),
		Stderr:     asFile(r.env.stderr),
		Init:       helper.Init(),
		Files:      files,
		Bundle:     append(r.spec.bundle, r.authority.PEM()...), // which has room for it
		Authority:  r.authority.PEM(),
		ResolvConf: fmt.Appendf(nil, "nameserver %s\n", netns.Nameserver),
		Hosts: fmt.Appendf(nil, "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n%s %s\n",
			netns.Own4, r.spec.name),
		Capabilities: r.spec.capAdd,
		Refused:      r.recordCall,
		Hidden:       r.env.hidden(),
	}
	if !r.spec.stdin {
		c.Stdin = nil
	}
	return c
}

func asFile(w any) *os.File {
	file, _ := w.(*os.File) // of tests: nothing is shown
	return file
}

// forwardSignals passes on what is sent to us until the returned function is
// called.
func (r *execution) forwardSignals() func() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case s := <-signals:
				if err := r.container.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
					r.log.WithError(err).Warn("pass a signal on to the command")
				}
			case <-done:
				return
			}
		}
	})
	return func() {
		signal.Stop(signals)
		close(done)
		wg.Wait()
	}
}

// abandon takes down what was to be a run. No command was started, so there is
// nothing to keep.
func (r *execution) abandon() error {
	return errors.Join(r.journal.Close(), r.end(), os.RemoveAll(r.folder))
}

// finish takes a run down, seals its journal and gives its name back. What is
// refused and open until then is in the journal before its last line.
func (r *execution) finish(exit *audit.RunExit) error {
	var errs []error
	errs = append(errs, r.container.Kill(), r.boundary.attached())
	counts, lost, err := r.settle()
	errs = append(errs, err)
	r.stop(errOver)
	r.serving.Wait()
	exit.Kernel = audit.Counts{Flows: counts.TCP, Datagrams: counts.DNS, Relayed: counts.Relayed, KernelRefused: counts.Refused}
	for _, e := range lost {
		if e.Count > 0 {
			_ = r.journal.Append(e) // its error is the journal's, told below
		}
	}
	// What the run has on the host goes while the disk takes its journal.
	cleared := make(chan error, 2)
	go func() { cleared <- r.container.Close() }()
	go func() { cleared <- r.boundary.close() }()
	failed := r.journal.Err() // has ended the run and is told by it
	seal, err := r.journal.Seal(exit, r.books.key)
	if err == nil {
		err = r.books.close(r.folder, seal)
	}
	if err != nil {
		if failed != nil {
			err = nil
		}
		// The run's own writes, which go first, may be what fills the disk.
		err = errors.Join(err, r.container.Close(), r.books.closeInterrupted(r.spec.id, r.folder))
	}
	return errors.Join(append(errs, err, <-cleared, <-cleared, r.end())...)
}

// settleTimeout bounds the wait for what the kernel has taken of a run that is over.
const settleTimeout = time.Second

// settle waits until everything that the kernel has given to the proxy and the
// resolver has been taken by them. No process of the run is left to make more. It
// returns what the kernel has counted, and what found no room.
func (r *execution) settle() (counts bpf.Counts, lost []audit.Lost, err error) {
	if counts, err = r.boundary.redirect.Counts(); err != nil {
		return counts, nil, err
	}
	for deadline := time.Now().Add(settleTimeout); ; time.Sleep(time.Millisecond) {
		lostDatagrams, lostRelayed, err := r.boundary.dropped()
		if err != nil {
			return counts, nil, err
		}
		flows, datagrams, relayed := r.taken()
		all := flows >= counts.TCP && datagrams+lostDatagrams >= counts.DNS && relayed+lostRelayed >= counts.Relayed
		if all || time.Now().After(deadline) {
			return counts, []audit.Lost{
				{What: audit.LostDatagrams, Count: lostDatagrams}, {What: audit.LostRelayed, Count: lostRelayed}, {What: audit.LostRefusals, Count: counts.Lost},
			}, nil
		}
	}
}

// end lets go of everything, the last acquired first.
func (r *execution) end() error {
	r.stop(errOver)
	var errs []error
	if r.container != nil {
		errs = append(errs, r.container.Close())
	}
	r.serving.Wait()
	if r.boundary != nil {
		errs = append(errs, r.boundary.close())
	}
	if r.claim != nil {
		errs = append(errs, r.claim.Release())
	}
	if r.logFile != nil {
		r.log.SetOutput(r.env.stderr)
		errs = append(errs, r.logFile.Close())
	}
	return errors.Join(errs...)
}
