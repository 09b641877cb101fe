package runtime

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// filterVM runs the filter as the kernel would.
func filterVM(t *testing.T) (*bpf.VM, callTables) {
	t.Helper()
	known := readCallTables()
	program := filterProgram(known)
	const most = 4096 // BPF_MAXINSNS
	if len(program) > most {
		t.Fatalf("the filter has %d instructions", len(program))
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	return vm, known
}

func decide(t *testing.T, vm *bpf.VM, arch, number uint32, args ...uint32) bpf.Instruction {
	t.Helper()
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[numberOffset:], number) // the VM is big-endian
	binary.BigEndian.PutUint32(data[archOffset:], arch)
	for i, arg := range args {
		binary.BigEndian.PutUint32(data[argsOffset+8*i:], arg)
		binary.BigEndian.PutUint32(data[argsOffset+8*i+4:], 0xffffffff) // which the kernel does not take
	}
	verdict, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return bpf.RetConstant{Val: uint32(verdict)}
}

// Every number of every architecture has the verdict of its name.
func TestFilterByName(t *testing.T) {
	vm, known := filterVM(t)
	for arch, tables := range known {
		for _, table := range tables {
			if len(table.names) < 6 {
				t.Errorf("architecture %#x knows %d calls from %d on", arch, len(table.names), table.first)
			}
			for i, name := range append(slices.Clone(table.names), "", "", "") {
				var want bpf.Instruction = refer
				switch {
				case name == "", slices.Contains([]string{"socketpair", "socket"}, name): // with 0, a family that is no one's
				case slices.Contains(allowedCalls, name), byArguments[name] != nil:
					want = pass
				}
				if name == "" || name == "clone3" {
					want = unknown
				}
				if got := decide(t, vm, arch, table.first+uint32(i), 0, 0, 0); got != want {
					t.Errorf("architecture %#x, call %d %q: %+v, want %+v", arch, table.first+uint32(i), name, got, want)
				}
			}
		}
		for _, number := range []uint32{1 << 29, 1<<30 - 1, 1<<30 + 5000, 1 << 31, 1<<32 - 1} {
			if got := decide(t, vm, arch, number); got != unknown {
				t.Errorf("architecture %#x, call %d: %+v", arch, number, got)
			}
		}
	}
	if got := decide(t, vm, unix.AUDIT_ARCH_PPC64, 1); got != unknown {
		t.Errorf("another architecture's call: %+v", got)
	}
}

// Nothing is in both lists, and no name is one that no table has.
func TestCallLists(t *testing.T) {
	known := map[string]bool{}
	for _, tables := range readCallTables() {
		for _, table := range tables {
			for _, name := range table.names {
				known[name] = true
			}
		}
	}
	for _, group := range refusedCalls {
		for name := range group.calls {
			if slices.Contains(allowedCalls, name) {
				t.Errorf("%s is both allowed and refused", name)
			}
			if !known[name] {
				t.Errorf("%s is refused, and there is no such call", name)
			}
		}
	}
	arm := []string{"arm_fadvise64_64", "arm_sync_file_range", "sync_file_range2", "recv", "send", "set_tls", "breakpoint", "cacheflush"}
	for i, name := range allowedCalls {
		if !known[name] && !slices.Contains(arm, name) {
			t.Errorf("%s is allowed, and there is no such call", name)
		}
		if slices.Contains(allowedCalls[:i], name) {
			t.Errorf("%s is allowed twice", name)
		}
	}
}

func TestFilterByArguments(t *testing.T) {
	vm, known := filterVM(t)
	number := func(arch uint32, table int, name string) uint32 {
		i := slices.Index(known[arch][table].names, name)
		if i < 0 {
			t.Fatalf("architecture %#x has no %s", arch, name)
		}
		return known[arch][table].first + uint32(i)
	}
	for arch, tables := range known {
		for i := range tables {
			if !slices.Contains(tables[i].names, "socket") {
				continue
			}
			socket, socketpair := number(arch, i, "socket"), number(arch, i, "socketpair")
			for family := range uint32(64) {
				for kind := range uint32(16) {
					for protocol := range uint32(300) {
						stream := kind == unix.SOCK_STREAM && (protocol == 0 || protocol == 6 || protocol == 262)
						datagram := kind == unix.SOCK_DGRAM && (protocol == 0 || protocol == 17)
						inet := family == unix.AF_INET || family == unix.AF_INET6
						allowed := family == unix.AF_UNIX || family == unix.AF_NETLINK && protocol == 0 || inet && (stream || datagram)
						for _, flags := range []uint32{0, unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK} {
							if got := decide(t, vm, arch, socket, family, kind|flags, protocol); got != pass && got != refer || (got == pass) != allowed {
								t.Fatalf("socket(%d, %#x, %d): %+v", family, kind|flags, protocol, got)
							}
						}
					}
				}
				if got := decide(t, vm, arch, socketpair, family); (got == pass) != (family == unix.AF_UNIX) {
					t.Errorf("socketpair(%d): %+v", family, got)
				}
			}
			for _, name := range []string{"clone", "unshare"} {
				for bit := range 32 {
					flag := uint32(1) << bit
					if got := decide(t, vm, arch, number(arch, i, name), flag|unix.CLONE_VM); (got == refer) != (flag&namespaceFlags != 0) {
						t.Errorf("%s with %#x: %+v", name, flag, got)
					}
				}
			}
			for persona, want := range map[uint32]bpf.Instruction{0: pass, 8: pass, 0xffffffff: pass, 0x400000: refer, 1: refer} {
				if got := decide(t, vm, arch, number(arch, i, "personality"), persona); got != want {
					t.Errorf("personality(%#x): %+v", persona, got)
				}
			}
		}
	}
}

// callProgram is a program that makes the system calls that its arguments are,
// ABI:NUMBER:ARGUMENT..., and prints what comes of each.
func callProgram(t *testing.T) string {
	t.Helper()
	const source = `
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
static long i386(long nr, long *a) {
	long r;
	__asm__ volatile("int $0x80" : "=a"(r) : "a"(nr), "b"(a[0]), "c"(a[1]), "d"(a[2]), "S"(a[3]), "D"(a[4]) : "memory", "r8", "r9", "r10", "r11");
	return r;
}
int main(int argc, char **argv) {
	static unsigned long long words[8];
	for (int i = 1; i < argc; i++) {
		char *abi = strtok(argv[i], ":"), *word;
		long a[7] = {0}, n = 0, r;
		while ((word = strtok(0, ":")) != 0 && n < 7) {
			if (word[0] == '@') { words[0] = strtoull(word + 1, 0, 0); a[n++] = (long)words; }
			else a[n++] = strtoul(word, 0, 0);
		}
		if (!strcmp(abi, "i386")) r = i386(a[0], a + 1);
		else if ((r = syscall(a[0] | (!strcmp(abi, "x32") ? 0x40000000 : 0), a[1], a[2], a[3], a[4], a[5], a[6])) < 0) r = -errno;
		printf("%s\n", r < 0 ? strerrorname_np(-r) : "ok");
		fflush(stdout);
	}
}`
	path := filepath.Join(t.TempDir(), "call")
	gcc := exec.Command("gcc", "-O1", "-static", "-x", "c", "-o", path, "-")
	gcc.Stdin = strings.NewReader(source)
	if out, err := gcc.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// What is refused, is refused at once, with an errno that says so and a record of
// who tried, by whatever entry to the kernel.
func TestRefusals(t *testing.T) {
	type attempt struct{ call, errno, recorded string }
	attempts := []attempt{
		{"x86-64:39", "ok", ""}, // getpid
		{"x86-64:41:40:1:0", "EAFNOSUPPORT", "socket(AF_VSOCK, SOCK_STREAM, 0)"},
		{"x86-64:41:0x100000028:1:0", "EAFNOSUPPORT", "socket(AF_VSOCK, SOCK_STREAM, 0)"},
		{"x86-64:41:38:5:0", "EAFNOSUPPORT", "socket(AF_ALG, SOCK_SEQPACKET, 0)"},
		{"x86-64:41:99:0x80801:0", "EAFNOSUPPORT", "socket(99, SOCK_STREAM|SOCK_NONBLOCK|SOCK_CLOEXEC, 0)"},
		{"x86-64:41:17:3:768", "EAFNOSUPPORT", "socket(AF_PACKET, SOCK_RAW, 768)"},
		{"x86-64:41:2:3:255", "EPERM", "socket(AF_INET, SOCK_RAW, IPPROTO_RAW)"},
		{"x86-64:41:10:0x80003:58", "EPERM", "socket(AF_INET6, SOCK_RAW|SOCK_CLOEXEC, IPPROTO_ICMPV6)"},
		{"x86-64:41:2:10:0", "EPERM", "socket(AF_INET, SOCK_PACKET, 0)"},
		{"x86-64:41:2:2:1", "EACCES", "socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP)"},
		{"x86-64:41:10:2:58", "EACCES", "socket(AF_INET6, SOCK_DGRAM, IPPROTO_ICMPV6)"},
		{"x86-64:41:2:2:136", "EPROTONOSUPPORT", "socket(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE)"},
		{"x86-64:41:2:2:115", "EPROTONOSUPPORT", "socket(AF_INET, SOCK_DGRAM, IPPROTO_L2TP)"},
		{"x86-64:41:10:1:132", "EPROTONOSUPPORT", "socket(AF_INET6, SOCK_STREAM, IPPROTO_SCTP)"},
		{"x86-64:41:2:1:256", "EPROTONOSUPPORT", "socket(AF_INET, SOCK_STREAM, IPPROTO_SMC)"},
		{"x86-64:41:2:5:132", "ESOCKTNOSUPPORT", "socket(AF_INET, SOCK_SEQPACKET, IPPROTO_SCTP)"},
		{"x86-64:41:2:6:33", "ESOCKTNOSUPPORT", "socket(AF_INET, SOCK_DCCP, IPPROTO_DCCP)"},
		{"x86-64:41:16:3:9", "EPROTONOSUPPORT", "socket(AF_NETLINK, SOCK_RAW, NETLINK_AUDIT)"},
		{"x86-64:41:16:3:0", "ok", ""},
		{"x86-64:41:2:1:6", "ok", ""},
		{"x86-64:41:10:2:0", "ok", ""},
		{"x86-64:53:30:5:0:@0", "EAFNOSUPPORT", "socketpair(AF_TIPC, SOCK_SEQPACKET, 0)"},
		{"x86-64:425:8:0", "EPERM", "io_uring_setup(0x8, 0x0)"},
		{"x86-64:321:5:0:0", "EPERM", "bpf(0x5, 0x0, 0x0)"},
		{"x86-64:298:0:0:0:0:0", "EPERM", "perf_event_open(0x0, 0x0, 0x0, 0x0, 0x0)"},
		{"x86-64:323:1", "EPERM", "userfaultfd(0x1)"},
		{"x86-64:250:0:0:0:0:0", "EPERM", "keyctl(0x0, 0x0, 0x0, 0x0, 0x0)"},
		{"x86-64:304:3:0:0", "EPERM", "open_by_handle_at(0x3, 0x0, 0x0)"},
		{"x86-64:165:0:0:0:0:0", "EPERM", "mount(0x0, 0x0, 0x0, 0x0, 0x0)"},
		{"x86-64:467:0:0:0:0:0", "EPERM", "open_tree_attr(0x0, 0x0, 0x0, 0x0, 0x0)"},
		{"x86-64:308:7:0x40000000", "EPERM", "setns(7, CLONE_NEWNET)"},
		{"x86-64:272:0x40020000", "EPERM", "unshare(CLONE_NEWNS|CLONE_NEWNET)"},
		{"x86-64:272:0x80", "EPERM", "unshare(CLONE_NEWTIME)"},
		{"x86-64:272:0x200", "ok", ""}, // CLONE_FS
		{"x86-64:56:0x10000011", "EPERM", "clone(CLONE_NEWUSER|0x11)"},
		{"x86-64:435:@0x50000000:88", "ENOSYS", ""}, // clone3
		{"x86-64:135:0x400000", "EPERM", "personality(0x400000)"},
		{"x86-64:103:3:0:0", "EPERM", "syslog(0x3, 0x0, 0x0)"},
		{"x86-64:134:0", "EPERM", "uselib(0x0, 0x0, 0x0, 0x0, 0x0, 0x0)"},
		{"x86-64:599", "ENOSYS", ""},
		{"x32:41:40:1:0", "EAFNOSUPPORT", "socket(AF_VSOCK, SOCK_STREAM, 0)"},
		{"x32:321:5:0:0", "EPERM", "bpf(0x5, 0x0, 0x0)"},
		{"x32:272:0x40000000", "EPERM", "unshare(CLONE_NEWNET)"},
		{"i386:20", "ok", ""}, // getpid
		{"i386:359:40:1:0", "EAFNOSUPPORT", "socket(AF_VSOCK, SOCK_STREAM, 0)"},
		{"i386:359:2:3:1", "EPERM", "socket(AF_INET, SOCK_RAW, IPPROTO_ICMP)"},
		{"i386:359:2:1:0", "ok", ""},
		{"i386:357:5:0:0", "EPERM", "bpf(0x5, 0x0, 0x0)"},
		{"i386:102:1:0", "ENOSYS", "socketcall(0x1, 0x0)"},
		{"i386:310:0x40000000", "EPERM", "unshare(CLONE_NEWNET)"},
		{"i386:21:0:0:0:0:0", "EPERM", "mount(0x0, 0x0, 0x0, 0x0, 0x0)"},
		{"i386:425:8:0", "EPERM", "io_uring_setup(0x8, 0x0)"},
	}
	cfg := newConfig(t, "/call")
	program := callProgram(t)
	cfg.Mounts = []Mount{{Source: program, Destination: "/call", ReadOnly: true}}
	if err := exec.Command(program, "i386:20").Run(); err != nil {
		// A kernel that runs no 32-bit code cannot be tried; TestFilterByName has
		// its numbers, too.
		t.Logf("no i386 calls here: %v", err)
		attempts = slices.DeleteFunc(attempts, func(a attempt) bool { return strings.HasPrefix(a.call, "i386:") })
	}
	var want []string
	for _, a := range attempts {
		cfg.Command = append(cfg.Command, a.call)
		if a.recorded != "" {
			want = append(want, a.recorded)
		}
	}
	var mu sync.Mutex
	var got []string
	cfg.Refused = func(r Refusal) error {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, r.Call)
		if p := r.Process; p == nil || p.PID <= 1 || p.Parent <= 1 || p.Parent == p.PID || p.UID != 0 || p.Comm != "call" || p.Exe != "/call" || r.Why == "" {
			t.Errorf("%s by %+v, since %q", r.Call, p, r.Why)
		}
		return nil
	}
	status, output := runConfig(t, cfg)
	if status.Code != 0 {
		t.Errorf("status %+v", status)
	}
	errnos := strings.Fields(output)
	if len(errnos) != len(attempts) {
		t.Fatalf("%d answers to %d calls:\n%s", len(errnos), len(attempts), output)
	}
	for i, a := range attempts {
		if errnos[i] != a.errno {
			t.Errorf("%s: %s, want %s", a.call, errnos[i], a.errno)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("recorded\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A refusal that cannot be recorded ends the run.
func TestRefusalWithoutRecord(t *testing.T) {
	cfg := newConfig(t, "/usr/bin/python3", "-c", "import socket, time\ntry: socket.socket(40, 1)\nexcept OSError: pass\ntime.sleep(1000)")
	cfg.Refused = func(Refusal) error { return os.ErrDeadlineExceeded }
	c, err := Create(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(); err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the run ended with %v", err)
	}
}

// A call waits as long as nobody answers it, as when the agent is stopped; when
// nobody is there to answer, it is refused all the same.
func TestRefusalWaits(t *testing.T) {
	const script = `
import errno, socket, sys
for line in sys.stdin:
    try: socket.socket(40, 1)
    except OSError as e: print(errno.errorcode[e.errno], flush=True)`
	cfg := newConfig(t, "/usr/bin/python3", "-c", script)
	inner, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, outer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Stdin, cfg.Stdout = inner, outer
	held, answer := make(chan struct{}), make(chan struct{})
	cfg.Refused = func(Refusal) error {
		close(held)
		<-answer
		return nil
	}
	c, err := Create(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	inner.Close()
	outer.Close()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, "try")
	<-held
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(out.Fd()), Events: unix.POLLIN}}, 0); n != 0 || err != nil {
		t.Errorf("before the answer there is output: %d, %v", n, err)
	}
	close(answer)
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); line != "EAFNOSUPPORT\n" {
		t.Errorf("after the answer: %q, %v", line, err)
	}
	if err := c.refuser.stop(); err != nil {
		t.Error(err)
	}
	fmt.Fprintln(in, "try")
	if line, err := lines.ReadString('\n'); line != "ENOSYS\n" {
		t.Errorf("without who answers: %q, %v", line, err)
	}
}

// The process that is recorded is the one that tried, whoever it is.
func TestRefusalNamesTheProcess(t *testing.T) {
	const script = `
import ctypes, os, socket, threading
def attempt():
    try: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
    except OSError: pass
if os.fork() == 0:
    os.setgid(65534); os.setuid(1234)
    ctypes.CDLL(None).prctl(15, b"evil\n\x1b[2J")
    thread = threading.Thread(target=attempt); thread.start(); thread.join()
    os._exit(0)
os.wait()
`
	cfg := newConfig(t, "/usr/bin/python3", "-c", script)
	var got []Refusal
	cfg.Refused = func(r Refusal) error { got = append(got, r); return nil }
	if status, output := runConfig(t, cfg); status.Code != 0 {
		t.Fatalf("status %+v\n%s", status, output)
	}
	if len(got) != 1 || got[0].Process == nil {
		t.Fatalf("recorded: %+v", got)
	}
	p := got[0].Process
	if p.UID != 1234 || p.Comm != "evil\n\x1b[2J" || !strings.HasPrefix(p.Exe, "/usr/bin/python3") {
		t.Errorf("recorded: %+v", p)
	}
}

// Threads and programs of a libc start as ever, with nothing to record.
func TestThreadsAreNoRefusals(t *testing.T) {
	cfg := newConfig(t, "/usr/bin/python3", "-c", `
import subprocess, threading
threads = [threading.Thread(target=subprocess.run, args=(["true"],)) for _ in range(20)]
for t in threads: t.start()
for t in threads: t.join()
print("done")`)
	cfg.Refused = func(r Refusal) error { return fmt.Errorf("%s was refused", r.Call) }
	if status, output := runConfig(t, cfg); status.Code != 0 || output != "done\n" {
		t.Errorf("status %+v, output %q", status, output)
	}
}
