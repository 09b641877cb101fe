package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"unsafe"

	"agentops/test/escape/attempt"

	"golang.org/x/sys/unix"
)

const unsafeWord = unsafe.Sizeof(uintptr(0))

// describeKernel prints what the kernel has, as a process outside of every run
// finds it. It makes the kernel load nothing: what could be loaded counts as
// there.
func describeKernel() error {
	if len(os.Args) > 3 {
		// A child that may die of the question.
		return ask(os.Args[3])
	}
	aliases := moduleAliases()
	k := attempt.Kernel{}
	for family := 0; family <= lastFamily; family++ {
		if aliases[fmt.Sprintf("net-pf-%d", family)] || hasSocket(family, 0) {
			k.Families = append(k.Families, family)
		}
	}
	for protocol := 1; protocol <= 22; protocol++ {
		if aliases[fmt.Sprintf("net-pf-16-proto-%d", protocol)] || hasNetlink(protocol) {
			k.Netlinks = append(k.Netlinks, protocol)
		}
	}
	for _, protocol := range []int{unix.IPPROTO_DCCP, unix.IPPROTO_L2TP, unix.IPPROTO_SCTP, unix.IPPROTO_UDPLITE, unix.IPPROTO_MPTCP} {
		loadable := slices.ContainsFunc(mapKeys(aliases), func(alias string) bool {
			return strings.HasPrefix(alias+"-", fmt.Sprintf("net-pf-2-proto-%d-", protocol))
		})
		if loadable || hasSocket(unix.AF_INET, protocol) {
			k.Protocols = append(k.Protocols, protocol)
		}
	}
	for _, nr := range askedCalls {
		// With arguments that nothing can be done with.
		if _, err := call(uintptr(nr), ^uintptr(0), ^uintptr(0), ^uintptr(0), ^uintptr(0), ^uintptr(0), ^uintptr(0)); !isErrno(err, unix.ENOSYS) {
			k.Calls = append(k.Calls, nr)
		}
	}
	k.Compat = hasCompat && survives("compat")
	k.X32 = x32 != 0 && survives("x32")
	return json.NewEncoder(os.Stdout).Encode(k)
}

// askedCalls are those that a kernel can be built without.
var askedCalls = []int{
	unix.SYS_IO_URING_SETUP, unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_ADD_KEY,
	unix.SYS_REQUEST_KEY, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE,
	unix.SYS_DELETE_MODULE, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_FSOPEN, unix.SYS_FSMOUNT,
	unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE, unix.SYS_MOUNT_SETATTR, unix.SYS_FSPICK, unix.SYS_PIDFD_GETFD,
	unix.SYS_QUOTACTL, unix.SYS_ACCT, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_MADVISE, unix.SYS_KCMP,
	unix.SYS_SYSLOG, unix.SYS_FANOTIFY_INIT, unix.SYS_LOOKUP_DCOOKIE, unix.SYS_MOVE_PAGES, unix.SYS_MBIND,
}

// ask does what may end this process.
func ask(what string) error {
	var err error
	switch what {
	case "compat":
		_, err = compat(compatGetpid)
	case "x32":
		_, err = call(x32 | unix.SYS_GETPID)
	}
	return err
}

func survives(what string) bool {
	return exec.Command("/proc/self/exe", "-mode", "kernel", what).Run() == nil
}

func hasSocket(family, protocol int) bool {
	for _, kind := range socketKinds {
		if protocol != 0 && kind == unix.SOCK_RAW {
			continue // which any number is good for
		}
		if fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol); err == nil {
			unix.Close(fd)
			return true
		}
	}
	return false
}

func hasNetlink(protocol int) bool {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// moduleAliases are the names by which the kernel would ask for modules of this
// host that it may load, as far as sockets are concerned.
func moduleAliases() map[string]bool {
	found := make(map[string]bool)
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return found
	}
	file, err := os.Open("/lib/modules/" + strings.TrimSpace(string(release)) + "/modules.alias")
	if err != nil {
		return found
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) == 3 && strings.HasPrefix(fields[1], "net-pf-") {
			found[fields[1]] = true
		}
	}
	return found
}

func mapKeys(m map[string]bool) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	return keys
}
