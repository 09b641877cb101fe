package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"agentops/test/escape/attempt"

	"golang.org/x/sys/unix"
)

// hostProbes reach for the host's processes and files.
func hostProbes(stage *attempt.Stage) []probe {
	list := []probe{
		fileProbe("init-root", "/proc/1/root/etc/passwd", unix.O_RDONLY),
		fileProbe("init-cwd", "/proc/1/cwd", unix.O_RDONLY),
		fileProbe("init-memory", "/proc/1/mem", unix.O_RDWR),
		fileProbe("init-environ", "/proc/1/environ", unix.O_RDONLY),
		{name: "init-files", try: func(t *try) verdict { return t.initFiles() }},
		{name: "init-trace", try: func(t *try) verdict { return t.trace(1) }},
		{name: "init-read", needs: needsCall(unix.SYS_PROCESS_VM_READV), try: func(t *try) verdict { return t.readMemory(1) }},
		{name: "init-kill", try: func(t *try) verdict {
			// The kernel takes it and does nothing: it is not for init to die of.
			t.start()
			_ = unix.Kill(1, unix.SIGKILL)
			_ = unix.Kill(1, unix.SIGSTOP)
			if err := unix.Kill(1, 0); err != nil && err != unix.EPERM {
				return t.reached("init is gone: %v", err)
			}
			return t.say(attempt.Blocked, "ignored")
		}},
		{name: "init-setns", record: attempt.Refusal, try: func(t *try) verdict { return t.enter(1, unix.CLONE_NEWNET) }},
		{name: "init-setns-mount", record: attempt.Refusal, try: func(t *try) verdict { return t.enter(1, unix.CLONE_NEWNS) }},
		{name: "pidfd-getfd", record: attempt.None, needs: needsCall(unix.SYS_PIDFD_GETFD), try: func(t *try) verdict {
			fd, err := unix.PidfdOpen(1, 0)
			if err != nil {
				return t.judge(err)
			}
			t.start()
			for number := range 16 {
				if got, err := unix.PidfdGetfd(fd, number, 0); err == nil {
					return t.reached("descriptor %d of init is %s", number, linkOf(got))
				} else if !isErrno(err, unix.EBADF) {
					return t.judge(err)
				}
			}
			return t.blocked(unix.EBADF)
		}},
		{name: "host-process", try: func(t *try) verdict {
			t.start()
			return t.judge(unix.Kill(t.stage.PID, 0), unix.ESRCH)
		}},
		{name: "host-process-trace", try: func(t *try) verdict { return t.trace(t.stage.PID) }},
		{name: "processes", try: func(t *try) verdict { return t.processes() }},
		{name: "inherited", try: func(t *try) verdict {
			if open := os.Getenv("ESCAPE_INHERITED"); open != "" {
				return t.reached("inherited: %s", open)
			}
			return t.say(attempt.Blocked, "none")
		}},
		{name: "abstract-socket", try: func(t *try) verdict { return t.unix("@" + t.stage.Abstract) }},
		{name: "links", try: func(t *try) verdict {
			if names := interfaces(); !slices.Equal(names, []string{"lo"}) {
				return t.reached("the run has %q", names)
			}
			return t.say(attempt.Blocked, "lo alone")
		}},
		{name: "mounts", try: func(t *try) verdict { return t.hostPathsIn("/proc/self/mountinfo") }},
		{name: "secret-environ", try: func(t *try) verdict { return t.environments() }},
		{name: "disk", root: true, needs: needsDisk, try: func(t *try) verdict { return t.disk() }},
		{name: "device-mem", root: true, try: func(t *try) verdict { return t.device(unix.S_IFCHR, 1, 1) }},
		{name: "device-kmsg", root: true, try: func(t *try) verdict { return t.device(unix.S_IFCHR, 1, 11) }},
		{name: "device-loop", root: true, try: func(t *try) verdict { return t.device(unix.S_IFCHR, 10, 237) }},
		{name: "device-fuse", root: true, try: func(t *try) verdict { return t.device(unix.S_IFCHR, 10, 229) }},
		{name: "device-kvm", root: true, try: func(t *try) verdict { return t.device(unix.S_IFCHR, 10, 232) }},
		{name: "device-vsock", root: true, try: func(t *try) verdict { return t.device(unix.S_IFCHR, 10, 241) }},
		{name: "device-nbd", root: true, try: func(t *try) verdict { return t.device(unix.S_IFBLK, 43, 0) }},
		{name: "open-by-handle", record: attempt.Refusal, needs: needsCall(unix.SYS_OPEN_BY_HANDLE_AT), try: func(t *try) verdict {
			return t.byHandle()
		}},
		// To be written, these would make the kernel run a program on the host.
		fileProbe("core-pattern", "/proc/sys/kernel/core_pattern", unix.O_WRONLY),
		fileProbe("modprobe-path", "/proc/sys/kernel/modprobe", unix.O_WRONLY),
		fileProbe("hotplug", "/sys/kernel/uevent_helper", unix.O_WRONLY),
		fileProbe("binfmt", "/proc/sys/fs/binfmt_misc/register", unix.O_WRONLY),
		fileProbe("sysrq", "/proc/sysrq-trigger", unix.O_WRONLY),
		fileProbe("kernel-memory", "/proc/kcore", unix.O_RDONLY),
		fileProbe("sysrq-setting", "/proc/sys/kernel/sysrq", unix.O_WRONLY),
		{name: "release-agent", try: func(t *try) verdict { return t.releaseAgent() }},
		{name: "sysfs-write", try: func(t *try) verdict { return t.writable("/sys") }},
	}
	// The kernel itself would connect to what is mounted.
	for _, m := range []struct{ kind, source, data string }{
		{"nfs", "192.175.48.77:/", "nolock,addr=192.175.48.77"},
		{"nfs4", "192.175.48.77:/", "addr=192.175.48.77,clientaddr=192.0.2.99"},
		{"cifs", "//192.175.48.77/share", "ip=192.175.48.77,unc=\\\\192.175.48.77\\share"},
		{"9p", "192.175.48.77", "trans=tcp,port=564"},
		{"ceph", "192.175.48.77:/", "name=admin"},
		{"fuse", "none", "fd=0,rootmode=40000,user_id=0,group_id=0"},
	} {
		list = append(list, probe{name: "mount-" + m.kind, record: attempt.Refusal, try: func(t *try) verdict {
			t.start()
			return t.judge(unix.Mount(m.source, "/tmp", m.kind, 0, m.data))
		}})
	}
	for i, path := range stage.Sockets {
		list = append(list, probe{name: fmt.Sprintf("socket-%d", i), try: func(t *try) verdict { return t.unix(path) }})
	}
	for i, path := range stage.Canaries {
		list = append(list, probe{name: fmt.Sprintf("canary-%d-%s", i, shortName(filepath.Dir(path))), try: func(t *try) verdict {
			return t.secretFile(path)
		}})
	}
	for i, path := range attempt.SecretPaths {
		list = append(list, probe{
			name: fmt.Sprintf("path-%d-%s", i, shortName(path)),
			needs: func(stage *attempt.Stage) string {
				if slices.Contains(stage.Paths, path) {
					return ""
				}
				return "the host has nothing at " + path
			},
			try: func(t *try) verdict { return t.hiddenPath(path) },
		})
	}
	for i := range list {
		list[i].class = "host"
	}
	return list
}

// shortName is what fits into a process's name of a path.
func shortName(path string) string { return strings.ReplaceAll(strings.Trim(path, "/"), "/", "-") }

func linkOf(fd int) string {
	target, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	return target
}

// initFiles opens what the run's init holds open, the agent's end of which is on
// the host.
func (t *try) initFiles() verdict {
	t.start()
	entries, err := os.ReadDir("/proc/1/fd")
	if err != nil {
		return t.judge(err)
	}
	for _, entry := range entries {
		if fd, err := unix.Open("/proc/1/fd/"+entry.Name(), unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
			return t.reached("descriptor %s of init is %s", entry.Name(), linkOf(fd))
		}
	}
	return t.blocked(unix.EACCES)
}

func (t *try) trace(pid int) verdict {
	runtime.LockOSThread()
	t.start()
	_, err := call(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, 0)
	return t.judge(err, unix.ESRCH)
}

func (t *try) readMemory(pid int) verdict {
	buf := make([]byte, 16)
	local := []unix.Iovec{{Base: &buf[0], Len: 16}}
	remote := []unix.RemoteIovec{{Base: 0x400000, Len: 16}}
	t.start()
	_, err := unix.ProcessVMReadv(pid, local, remote, 0)
	return t.judge(err, unix.ESRCH)
}

// enter goes into a namespace of another process's by a descriptor of it.
func (t *try) enter(pid, kind int) verdict {
	runtime.LockOSThread()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return t.judge(err)
	}
	t.start()
	return t.judge(unix.Setns(fd, kind))
}

// processes looks for any that is not the run's.
func (t *try) processes() verdict {
	t.start()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return t.judge(err)
	}
	for _, entry := range entries {
		if entry.Name() == fmt.Sprint(t.stage.PID) && strings.Trim(entry.Name(), "0123456789") == "" {
			comm, _ := os.ReadFile("/proc/" + entry.Name() + "/comm")
			if !strings.HasPrefix(string(comm), "escape") {
				return t.reached("process %s of the host: %s", entry.Name(), bytes.TrimSpace(comm))
			}
		}
	}
	return t.say(attempt.Blocked, "the run's alone")
}

// unix connects to a unix socket, abstract if its name begins with @.
func (t *try) unix(name string) verdict {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return t.judge(err)
	}
	defer unix.Close(fd)
	t.start()
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: name})
	return t.judge(err, unix.ECONNREFUSED, unix.ENOENT, unix.ENOTSOCK, unix.ENOTDIR)
}

// secretFile looks for the secret that the host has put into a file of its own,
// and for a way to change it.
func (t *try) secretFile(path string) verdict {
	t.start()
	content, err := os.ReadFile(path)
	if err == nil {
		return t.reached("%s was read: %q", path, clip(string(content), 32))
	}
	if fd, openErr := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0); openErr == nil {
		unix.Close(fd)
		return t.reached("%s was opened to be written", path)
	}
	return t.judge(err, unix.ENOENT, unix.ENOTDIR)
}

// hiddenPath finds nothing, or something empty.
func (t *try) hiddenPath(path string) verdict {
	t.start()
	info, err := os.Stat(path)
	if err != nil {
		return t.judge(unwrap(err), unix.ENOENT, unix.ENOTDIR)
	}
	if info.IsDir() {
		entries, err := os.ReadDir(path)
		if len(entries) > 0 {
			return t.reached("%s has %s in it", path, entries[0].Name())
		}
		if err != nil {
			return t.judge(unwrap(err))
		}
		return t.say(attempt.Blocked, "empty")
	}
	content := make([]byte, 1)
	file, err := os.Open(path)
	if err != nil {
		return t.judge(unwrap(err), unix.ENXIO)
	}
	defer file.Close()
	if strings.Contains(path, "shadow") {
		return t.passwords(file)
	}
	if n, _ := file.Read(content); n > 0 {
		return t.reached("%s was read", path)
	}
	return t.say(attempt.Blocked, "empty")
}

// passwords looks for hashes of any in a shadow file: a run sees the names in it.
func (t *try) passwords(file io.Reader) verdict {
	content, err := io.ReadAll(file)
	if err != nil {
		return t.judge(unwrap(err))
	}
	for line := range strings.Lines(string(content)) {
		if fields := strings.Split(line, ":"); len(fields) > 1 && strings.Contains(fields[1], "$") {
			return t.reached("the password's hash of %s", fields[0])
		}
	}
	return t.say(attempt.Blocked, "no hashes")
}

func unwrap(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// hostPathsIn looks for the secret's folder in what the kernel tells of mounts.
func (t *try) hostPathsIn(path string) verdict {
	t.start()
	content, err := os.ReadFile(path)
	if err != nil {
		return t.judge(err)
	}
	if i := bytes.Index(content, []byte(t.stage.Secret)); i >= 0 {
		return t.reached("the secret is in %s", path)
	}
	return t.say(attempt.Blocked, "nothing of the host's")
}

// environments reads those of all processes that can be had.
func (t *try) environments() verdict {
	t.start()
	paths, _ := filepath.Glob("/proc/[0-9]*/environ")
	cmdlines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range append(paths, cmdlines...) {
		content, err := os.ReadFile(path)
		if err == nil && bytes.Contains(content, []byte(t.stage.Secret)) {
			return t.reached("the secret is in %s", path)
		}
	}
	return t.say(attempt.Blocked, "not there")
}

func needsDisk(*attempt.Stage) string {
	if _, _, ok := anyDisk(); !ok {
		return "the host has no block device"
	}
	return ""
}

// anyDisk is the first block device of the host.
func anyDisk() (major, minor uint32, ok bool) {
	paths, _ := filepath.Glob("/sys/class/block/*/dev")
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil || strings.Contains(path, "/ram") || strings.Contains(path, "/loop") {
			continue
		}
		if n, _ := fmt.Sscanf(string(content), "%d:%d", &major, &minor); n == 2 {
			return major, minor, true
		}
	}
	return 0, 0, false
}

func (t *try) disk() verdict {
	major, minor, _ := anyDisk()
	return t.device(unix.S_IFBLK, major, minor)
}

// byHandle opens the root of the filesystem by its number, past all mounts.
func (t *try) byHandle() verdict {
	handle, mount, err := unix.NameToHandleAt(unix.AT_FDCWD, "/etc", 0)
	if err != nil {
		made := unix.NewFileHandle(1, make([]byte, 8))
		handle, mount = made, 0
	}
	_ = mount
	root, err := unix.Open("/", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return t.silent("%v", err)
	}
	t.start()
	_, err = unix.OpenByHandleAt(root, handle, unix.O_RDONLY)
	return t.judge(err)
}

// releaseAgent looks for a place to write the name of a program to that the
// kernel runs on the host.
func (t *try) releaseAgent() verdict {
	var last error = unix.ENOENT
	t.start()
	paths, _ := filepath.Glob("/sys/fs/cgroup/*/release_agent")
	own, _ := filepath.Glob("/sys/fs/cgroup/release_agent")
	for _, path := range append(paths, own...) {
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
			return t.reached("%s was opened", path)
		}
		last = err
	}
	return t.judge(last, unix.EROFS, unix.ENOENT)
}

// writable looks for a file below a folder that can be opened to be written.
func (t *try) writable(root string) verdict {
	found, looked := "", 0
	t.start()
	_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return nil //nolint:nilerr // what cannot be read cannot be written
		}
		if looked++; looked > 200 {
			return filepath.SkipAll
		}
		if fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
			unix.Close(fd)
			found = path
			return filepath.SkipAll
		}
		return nil
	})
	if found != "" {
		return t.reached("%s was opened", found)
	}
	return t.blocked(unix.EROFS)
}

// memoryHas searches the memory of a process for words. The error says that it
// may not be read.
func memoryHas(pid int, words ...string) (string, error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return "", err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return "", err
	}
	defer mem.Close()
	buf := make([]byte, 1<<20)
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		if n, _ := fmt.Sscanf(line, "%x-%x rw", &from, &to); n != 2 {
			continue
		}
		for at := from; at < to && at-from < 64<<20; at += uint64(len(buf)) {
			n, err := mem.ReadAt(buf[:min(uint64(len(buf)), to-at)], int64(at))
			if err != nil && !errors.Is(err, io.EOF) && n == 0 {
				break
			}
			for _, word := range words {
				if bytes.Contains(buf[:n], []byte(word)) {
					return word, nil
				}
			}
		}
	}
	return "", nil
}
