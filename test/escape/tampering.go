package main

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"unsafe"

	"agentops/test/escape/attempt"

	"golang.org/x/sys/unix"
)

// tamperingProbes try to change what bounds a run. Each is such that, if it were
// let do, it would change the run alone.
func tamperingProbes() []probe {
	list := []probe{
		{name: "route-add", record: attempt.None, try: func(t *try) verdict { return t.netlink(unix.RTM_NEWROUTE, routeMessage()) }},
		{name: "route-delete", record: attempt.None, try: func(t *try) verdict { return t.netlink(unix.RTM_DELROUTE, routeMessage()) }},
		{name: "link-add", record: attempt.None, try: func(t *try) verdict { return t.netlink(unix.RTM_NEWLINK, linkMessage("veth")) }},
		{name: "link-tun", record: attempt.None, try: func(t *try) verdict { return t.netlink(unix.RTM_NEWLINK, linkMessage("dummy")) }},
		{name: "address-add", record: attempt.None, try: func(t *try) verdict {
			return t.netlink(unix.RTM_NEWADDR, append([]byte{unix.AF_INET, 32, 0, 0, 1, 0, 0, 0}, attribute(unix.IFA_LOCAL, []byte{192, 0, 2, 99})...))
		}},
		{name: "rule-add", record: attempt.None, try: func(t *try) verdict {
			return t.netlink(unix.RTM_NEWRULE, []byte{unix.AF_INET, 0, 0, 0, unix.RT_TABLE_MAIN, 0, 0, 1, 0, 0, 0, 0})
		}},
		{name: "lo-down", record: attempt.None, try: func(t *try) verdict { return t.loopbackDown() }},
		{name: "tun-device", record: attempt.None, try: func(t *try) verdict { return t.device(unix.S_IFCHR, 10, 200) }},
		{name: "iptables", record: attempt.Refusal, try: func(t *try) verdict {
			t.start()
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
			if err != nil {
				return t.judge(err)
			}
			const iptSetReplace = 64
			return t.judge(unix.SetsockoptString(fd, unix.IPPROTO_IP, iptSetReplace, strings.Repeat("\x00", 96)), unix.ENOPROTOOPT)
		}},
		{name: "nftables", record: attempt.Refusal, try: func(t *try) verdict {
			t.start()
			_, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER)
			return t.judge(err)
		}},
	}
	// Settings of the kernel, opened and left as they are.
	for _, s := range []struct{ name, path string }{
		{"sysctl-forward", "/proc/sys/net/ipv4/ip_forward"},
		{"sysctl-echo", "/proc/sys/net/ipv4/icmp_echo_ignore_all"},
		{"sysctl-ports", "/proc/sys/net/ipv4/ip_unprivileged_port_start"},
		{"sysctl-domain", "/proc/sys/kernel/domainname"},
	} {
		list = append(list, fileProbe(s.name, s.path, unix.O_WRONLY))
	}
	for _, ns := range []struct {
		name string
		flag uintptr
	}{
		{"net", unix.CLONE_NEWNET}, {"user", unix.CLONE_NEWUSER}, {"mount", unix.CLONE_NEWNS}, {"pid", unix.CLONE_NEWPID},
		{"ipc", unix.CLONE_NEWIPC}, {"uts", unix.CLONE_NEWUTS}, {"cgroup", unix.CLONE_NEWCGROUP}, {"time", unix.CLONE_NEWTIME},
	} {
		list = append(list,
			syscallProbe("unshare-"+ns.name, unix.SYS_UNSHARE, func() []uintptr { return []uintptr{ns.flag} }))
	}
	list = append(list,
		probe{name: "clone-user", record: attempt.Refusal, try: func(t *try) verdict { return t.clone() }},
		probe{name: "clone3-user", record: attempt.None, try: func(t *try) verdict { return t.clone3() }},
		probe{name: "setns-own", record: attempt.Refusal, try: func(t *try) verdict {
			fd, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return t.silent("%v", err)
			}
			runtime.LockOSThread()
			t.start()
			return t.judge(unix.Setns(fd, unix.CLONE_NEWNET))
		}},
		probe{name: "cgroup-leave", record: attempt.None, try: func(t *try) verdict { return t.leaveCgroup() }},
		probe{name: "cgroup-mount", record: attempt.Refusal, try: func(t *try) verdict { return t.mount("cgroup2", "cgroup2") }},
		probe{name: "cgroup1-mount", record: attempt.Refusal, try: func(t *try) verdict { return t.mount("cgroup", "cgroup") }},
		probe{name: "mount-tmpfs", record: attempt.Refusal, try: func(t *try) verdict { return t.mount("tmpfs", "tmpfs") }},
		probe{name: "mount-proc", record: attempt.Refusal, try: func(t *try) verdict { return t.mount("proc", "proc") }},
		probe{name: "mount-sysfs", record: attempt.Refusal, try: func(t *try) verdict { return t.mount("sysfs", "sysfs") }},
		probe{name: "mount-bpf", record: attempt.Refusal, try: func(t *try) verdict { return t.mount("bpf", "bpf") }},
		probe{name: "remount-proc-sys", record: attempt.Refusal, try: func(t *try) verdict {
			t.start()
			return t.judge(unix.Mount("", "/proc/sys", "", unix.MS_REMOUNT|unix.MS_BIND, ""))
		}},
		probe{name: "unmount-proc-sys", record: attempt.Refusal, try: func(t *try) verdict {
			t.start()
			return t.judge(unix.Unmount("/proc/sys", unix.MNT_DETACH))
		}},
		probe{name: "unmount-hidden", record: attempt.Refusal, try: func(t *try) verdict {
			t.start()
			return t.judge(unix.Unmount("/tmp", unix.MNT_DETACH))
		}},
		probe{name: "pivot-root", record: attempt.Refusal, try: func(t *try) verdict {
			t.start()
			return t.judge(unix.PivotRoot("/tmp", "/tmp"))
		}},
		probe{name: "bpf-load", record: attempt.Refusal, needs: needsCall(unix.SYS_BPF), try: func(t *try) verdict { return t.loadBPF() }},
		probe{name: "bpf-links", record: attempt.Refusal, needs: needsCall(unix.SYS_BPF), try: func(t *try) verdict {
			attr := make([]byte, 144) // BPF_LINK_GET_NEXT_ID: the redirect's would be the one to detach
			t.start()
			_, err := call(unix.SYS_BPF, 31, address(attr), uintptr(len(attr)))
			return t.judge(err)
		}},
	)
	bad := func() []uintptr { return make([]uintptr, 6) }
	for _, c := range []struct {
		name string
		nr   uintptr
		args func() []uintptr
	}{
		{"perf-open", unix.SYS_PERF_EVENT_OPEN, func() []uintptr { return []uintptr{perfAttr(), 0, ^uintptr(0), ^uintptr(0), 0} }},
		{"userfaultfd", unix.SYS_USERFAULTFD, func() []uintptr { return []uintptr{unix.O_CLOEXEC} }},
		{"add-key", unix.SYS_ADD_KEY, func() []uintptr { return []uintptr{cString("user"), cString("escape"), cString("x"), 1, ^uintptr(1)} }},
		{"request-key", unix.SYS_REQUEST_KEY, func() []uintptr { return []uintptr{cString("user"), cString("escape"), 0, 0} }},
		{"keyctl", unix.SYS_KEYCTL, func() []uintptr { return []uintptr{0, ^uintptr(2), 0} }},
		{"kexec-load", unix.SYS_KEXEC_LOAD, func() []uintptr { return []uintptr{0, 1 << 20, 0, 0} }},
		{"kexec-file-load", unix.SYS_KEXEC_FILE_LOAD, func() []uintptr { return []uintptr{^uintptr(0), ^uintptr(0), 0, 0, 0} }},
		{"init-module", unix.SYS_INIT_MODULE, bad},
		{"finit-module", unix.SYS_FINIT_MODULE, func() []uintptr { return []uintptr{^uintptr(0), cString(""), 0} }},
		{"delete-module", unix.SYS_DELETE_MODULE, func() []uintptr { return []uintptr{cString("no_such_module"), unix.O_NONBLOCK} }},
		{"fsopen", unix.SYS_FSOPEN, func() []uintptr { return []uintptr{cString("tmpfs"), 0} }},
		{"fspick", unix.SYS_FSPICK, func() []uintptr { return []uintptr{atCwd, cString("/"), 0} }},
		{"open-tree", unix.SYS_OPEN_TREE, func() []uintptr { return []uintptr{atCwd, cString("/"), 1} }},
		{"move-mount", unix.SYS_MOVE_MOUNT, func() []uintptr { return []uintptr{atCwd, cString("/tmp"), atCwd, cString("/tmp"), 0} }},
		{"mount-setattr", unix.SYS_MOUNT_SETATTR, func() []uintptr { return []uintptr{atCwd, cString("/"), 0, cString(strings.Repeat("\x00", 32)), 32} }},
		{"swapon", unix.SYS_SWAPON, func() []uintptr { return []uintptr{cString("/nonexistent"), 0} }},
		{"reboot", unix.SYS_REBOOT, bad},
		{"settimeofday", unix.SYS_SETTIMEOFDAY, bad},
		{"clock-adjtime", unix.SYS_CLOCK_ADJTIME, func() []uintptr { return []uintptr{0, cString("\x00\x40" + strings.Repeat("\x00", 206))} }}, // ADJ_TICK, of none
		{"sethostname", unix.SYS_SETHOSTNAME, func() []uintptr { return []uintptr{cString("escaped"), 7} }},
		{"acct", unix.SYS_ACCT, func() []uintptr { return []uintptr{cString("/nonexistent")} }},
		{"kernel-log", unix.SYS_SYSLOG, func() []uintptr { return []uintptr{3, cString(strings.Repeat("\x00", 64)), 64} }},
		{"vhangup", unix.SYS_VHANGUP, func() []uintptr { return nil }},
	} {
		list = append(list, syscallProbe(c.name, c.nr, c.args))
	}
	for i := range list {
		list[i].class = "tampering"
	}
	return list
}

const atCwd = ^uintptr(99) // AT_FDCWD

// kept holds what system calls were given, for the process's short life.
var kept [][]byte

// cString is a NUL-terminated string's address.
func cString(s string) uintptr {
	b := append([]byte(s), 0)
	kept = append(kept, b)
	return address(b)
}

func perfAttr() uintptr {
	attr := &unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_CPU_CLOCK, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{}))}
	b := unsafe.Slice((*byte)(unsafe.Pointer(attr)), unsafe.Sizeof(*attr))
	kept = append(kept, b)
	return address(b)
}

// syscallProbe makes a system call that no run may make.
func syscallProbe(name string, nr uintptr, args func() []uintptr) probe {
	p := probe{name: name, record: attempt.Refusal, try: func(t *try) verdict {
		runtime.LockOSThread() // what a thread's call changes dies with it
		given := args()
		t.start()
		_, err := call(nr, given...)
		return t.judge(err)
	}}
	for _, asked := range askedCalls {
		if uintptr(asked) == nr {
			p.needs = needsCall(asked)
		}
	}
	return p
}

// fileProbe opens a file that no run may open so. Nothing is written. The
// kernel refuses by the file's rules, which leaves no record.
func fileProbe(name, path string, flags int) probe {
	return probe{name: name, try: func(t *try) verdict {
		t.start()
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
			return t.reached("%s was opened", path)
		}
		return t.judge(err, unix.EROFS, unix.ENOENT, unix.ENXIO)
	}}
}

// netlink asks NETLINK_ROUTE for a change.
func (t *try) netlink(kind uint16, body []byte) verdict {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return t.judge(err)
	}
	defer unix.Close(fd)
	header := unix.NlMsghdr{
		Len: uint32(unix.SizeofNlMsghdr + len(body)), Type: kind, Seq: 1,
		Flags: unix.NLM_F_REQUEST | unix.NLM_F_ACK | unix.NLM_F_CREATE,
	}
	message := append(unsafe.Slice((*byte)(unsafe.Pointer(&header)), unix.SizeofNlMsghdr), body...)
	t.start()
	if err := unix.Sendto(fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return t.judge(err)
	}
	if !wait(fd, unix.POLLIN) {
		return t.silent("no answer")
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil || n < unix.SizeofNlMsghdr+4 {
		return t.silent("read the answer: %v", err)
	}
	code := *(*int32)(unsafe.Pointer(&answer[unix.SizeofNlMsghdr]))
	if code == 0 {
		return t.reached("it was let do")
	}
	return t.judge(unix.Errno(-code))
}

// attribute is one of netlink's, padded.
func attribute(kind uint16, value []byte) []byte {
	length := 4 + len(value)
	b := make([]byte, (length+3)&^3)
	*(*uint16)(unsafe.Pointer(&b[0])) = uint16(length)
	*(*uint16)(unsafe.Pointer(&b[2])) = kind
	copy(b[4:], value)
	return b
}

// routeMessage is the default route by the loopback interface.
func routeMessage() []byte {
	body := []byte{unix.AF_INET, 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_HOST, unix.RTN_LOCAL, 0, 0, 0, 0}
	return append(body, attribute(unix.RTA_OIF, []byte{1, 0, 0, 0})...)
}

func linkMessage(kind string) []byte {
	body := make([]byte, unix.SizeofIfInfomsg)
	body = append(body, attribute(unix.IFLA_IFNAME, []byte("escape0\x00"))...)
	return append(body, attribute(unix.IFLA_LINKINFO, attribute(1, []byte(kind)))...) // IFLA_INFO_KIND
}

// loopbackDown would cut the run off.
func (t *try) loopbackDown() verdict {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return t.judge(err)
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return t.silent("%v", err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request); err != nil {
		return t.silent("read the flags of lo: %v", err)
	}
	t.start() // the flags as they are
	return t.judge(unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request))
}

// device makes a node in the run's own /tmp and opens it.
func (t *try) device(kind, major, minor uint32) verdict {
	path := filepath.Join("/tmp", "escape-"+t.name)
	_ = unix.Unlink(path)
	t.start()
	if err := unix.Mknod(path, kind|0o600, int(unix.Mkdev(major, minor))); err != nil {
		return t.judge(err)
	}
	defer func() { _ = os.Remove(path) }() // it is gone with the run
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
		return t.reached("device %d:%d was opened", major, minor)
	}
	return t.judge(err)
}

func (t *try) mount(kind, source string) verdict {
	dir, err := os.MkdirTemp("/tmp", "escape-")
	if err != nil {
		return t.silent("%v", err)
	}
	t.start()
	return t.judge(unix.Mount(source, dir, kind, 0, ""))
}

// clone makes a child with a user namespace, in which it would have every
// capability.
func (t *try) clone() verdict {
	t.start()
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.CLONE_NEWUSER|unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno == 0 && pid == 0 {
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0) // does not return
	}
	if errno == 0 {
		return t.reached("a user namespace")
	}
	return t.judge(errno)
}

// clone3 has its flags in memory, where no filter sees them.
func (t *try) clone3() verdict {
	args := make([]uint64, 11)
	args[0], args[4] = unix.CLONE_NEWUSER, uint64(unix.SIGCHLD)
	t.start()
	pid, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args[0])), 88, 0)
	if errno == 0 && pid == 0 {
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0) // does not return
	}
	if errno == 0 {
		return t.reached("a user namespace")
	}
	return t.judge(errno)
}

// leaveCgroup goes to the root of the hierarchy that a run sees, and above.
func (t *try) leaveCgroup() verdict {
	var last error = unix.ENOENT
	t.start()
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, entry os.DirEntry, err error) error {
		if err == nil && entry.Name() == "cgroup.procs" {
			fd, openErr := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if openErr == nil {
				unix.Close(fd)
				last = nil
				return filepath.SkipAll
			}
			last = openErr
		}
		return nil
	})
	return t.judge(last, unix.EROFS, unix.ENOENT)
}

// loadBPF loads the shortest program that there is.
func (t *try) loadBPF() verdict {
	program := []uint64{0x00000000000000b7, 0x0000000000000095} // r0 = 0; exit
	license := []byte("GPL\x00")
	attr := make([]byte, 144)
	*(*uint32)(unsafe.Pointer(&attr[0])) = 1 // BPF_PROG_TYPE_SOCKET_FILTER
	*(*uint32)(unsafe.Pointer(&attr[4])) = uint32(len(program))
	*(*uint64)(unsafe.Pointer(&attr[8])) = uint64(uintptr(unsafe.Pointer(&program[0])))
	*(*uint64)(unsafe.Pointer(&attr[16])) = uint64(address(license))
	t.start()
	_, err := call(unix.SYS_BPF, 5, address(attr), uintptr(len(attr)))
	runtime.KeepAlive(program)
	return t.judge(err)
}

// interfaces are the names of the run's links.
func interfaces() []string {
	var names []string
	links, _ := net.Interfaces()
	for _, link := range links {
		names = append(names, link.Name)
	}
	return names
}
