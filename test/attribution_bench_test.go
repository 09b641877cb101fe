package test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"agentops/audit"
	"agentops/bpf"
	"agentops/mitm"
	"agentops/mitm/policy"
	"agentops/mitm/resolver"
	"agentops/netns"

	"github.com/moby/sys/mountinfo"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// The connections of the benchmark are made by this program, started again: as many
// at a time as it is told.
func TestMain(m *testing.M) {
	address := os.Getenv("BENCH_CONNECT")
	if address == "" {
		os.Exit(m.Run())
	}
	for {
		var n int
		if _, err := fmt.Fscan(os.Stdin, &n); err != nil {
			return
		}
		for range n {
			conn, err := net.Dial("tcp", address)
			if err == nil {
				_, err = conn.Write([]byte("\x00")) // what is neither HTTP nor TLS
			}
			if err == nil {
				_, err = io.Copy(io.Discard, conn)
			}
			if err != nil {
				panic(err)
			}
			conn.Close()
		}
		fmt.Println("done")
	}
}

// What it costs a connection through the proxy that its process is known, in time of
// all processors, client and upstream included: the proxy and its journal are the
// real ones. The two take turns, so that what else the machine does is in both; the
// ratio is of their medians.
func BenchmarkAttribution(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	const round = 200
	plain, known := newDialler(b, false), newDialler(b, true)
	var spent [2][]float64
	both := [2]*dialler{plain, known}
	for i := 0; b.Loop(); i++ {
		for k := range both {
			k ^= i & 1 // each is first as often as the other
			spent[k] = append(spent[k], both[k].connect(b, round))
		}
	}
	slices.Sort(spent[0])
	slices.Sort(spent[1])
	without, with := spent[0][len(spent[0])/2], spent[1][len(spent[1])/2]
	b.ReportMetric(without/round*1e6, "µs/plain")
	b.ReportMetric(with/round*1e6, "µs/known")
	b.ReportMetric(with/without, "known/plain")
}

// dialler is a client in a namespace of its own with a proxy, which knows its
// process or does not.
type dialler struct {
	client int // its process
	stdin  io.Writer
	stdout io.Reader
}

func newDialler(b *testing.B, known bool) *dialler {
	ns, err := netns.New()
	check(b, err)
	b.Cleanup(func() { ns.Close() })
	listener, err := ns.Listen("tcp4", netip.AddrPortFrom(netns.Host4, 0))
	check(b, err)
	dns, err := ns.ListenPacket("udp4", netip.AddrPortFrom(netns.Host4, 53))
	check(b, err)
	b.Cleanup(func() { dns.Close() })
	redirect, err := bpf.AttachRedirect(bpf.RedirectOptions{NetNS: ns.File(), Own4: netns.Own4, Own6: netns.Own6, TCP4: listener, DNS4: dns})
	check(b, err)
	b.Cleanup(func() { redirect.Close() })

	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), "BENCH_CONNECT=203.0.113.7:7"), os.Stderr
	var owner func(source, destination netip.AddrPort) *audit.Process
	if known {
		observer, cgroup := observe(b, redirect)
		owner = func(source, destination netip.AddrPort) *audit.Process {
			p, ok := observer.TCPOwner(source, destination)
			if !ok {
				b.Error("a connection has no owner")
			}
			return &audit.Process{PID: p.PID, Parent: p.Parent, UID: p.UID, Comm: p.Comm, Exe: p.Exe}
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	}
	serveOpaque(b, listener, owner)

	stdin, err := cmd.StdinPipe()
	check(b, err)
	stdout, err := cmd.StdoutPipe()
	check(b, err)
	check(b, ns.Do(cmd.Start))
	b.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
	})
	return &dialler{client: cmd.Process.Pid, stdin: stdin, stdout: stdout}
}

// observe attaches an observer to a cgroup that is made for it.
func observe(b *testing.B, redirect *bpf.Redirect) (*bpf.Observer, *os.File) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	check(b, err)
	path := filepath.Join(mounts[0].Mountpoint, "agentops-bench-attribution")
	check(b, os.Mkdir(path, 0o755))
	b.Cleanup(func() { os.Remove(path) })
	cgroup, err := os.Open(path)
	check(b, err)
	b.Cleanup(func() { cgroup.Close() })
	layout, err := bpf.ReadLayout()
	check(b, err)
	observer, err := bpf.LoadObserver(bpf.ObserverOptions{Redirect: redirect, Own4: netns.Own4, Own6: netns.Own6, Layout: layout})
	check(b, err)
	b.Cleanup(func() { observer.Close() })
	check(b, observer.Attach(path))
	return observer, cgroup
}

// serveOpaque serves a run's proxy, which dials a server that takes a byte and closes.
func serveOpaque(b *testing.B, listener *net.TCPListener, owner func(source, destination netip.AddrPort) *audit.Process) {
	upstream, err := net.Listen("tcp", "127.0.0.1:0")
	check(b, err)
	b.Cleanup(func() { upstream.Close() })
	go func() {
		for {
			conn, err := upstream.Accept()
			if err != nil {
				return
			}
			_, _ = io.ReadFull(conn, make([]byte, 1)) // or the close would be a reset
			conn.Close()
		}
	}()
	pin, err := mitm.ParsePin("*=" + upstream.Addr().String())
	check(b, err)
	journal, err := audit.Create(filepath.Join(b.TempDir(), "journal.jsonl"), "bench")
	check(b, err)
	b.Cleanup(func() { journal.Close() })
	log := logrus.New()
	log.SetOutput(io.Discard)
	rules := &policy.Policy{Mode: policy.Permissive}
	proxy := mitm.New(mitm.Config{
		Policy: rules, Names: resolver.NewNames(), Dialer: mitm.NewDialer([]mitm.Pin{pin}, rules),
		Recorder: journal, Log: log, Owner: owner,
	})
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := proxy.Serve(ctx, listener); err != nil {
			b.Error(err)
		}
	})
	b.Cleanup(func() { cancel(); serving.Wait() })
}

// connect makes n connections and returns the seconds of processor time they took.
func (d *dialler) connect(b *testing.B, n int) float64 {
	began := d.spent(b)
	_, err := fmt.Fprintln(d.stdin, n)
	check(b, err)
	_, err = io.ReadFull(d.stdout, make([]byte, len("done\n")))
	check(b, err)
	return d.spent(b) - began
}

// spent is the processor time so far of this process and the client.
func (d *dialler) spent(b *testing.B) float64 {
	var own unix.Rusage
	check(b, unix.Getrusage(unix.RUSAGE_SELF, &own))
	spent := time.Duration(own.Utime.Nano() + own.Stime.Nano())
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", d.client))
	check(b, err)
	for _, path := range threads {
		content, err := os.ReadFile(path)
		check(b, err)
		var running time.Duration
		_, err = fmt.Sscan(string(content), &running)
		check(b, err)
		spent += running
	}
	return spent.Seconds()
}

func check(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
