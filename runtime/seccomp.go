package runtime

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// seccomp keeps a run from the ways around its network namespace that the kernel
// has, and from parts of the kernel that no command of a run needs. All the rest
// is allowed; what that lets root do, capabilities and namespaces bound.
//
// The filter holds for 32-bit and x32 system calls as well. It needs the build
// tag seccomp; without it libcontainer refuses to start a container.
func seccomp() *specs.LinuxSeccomp {
	profile := &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32, specs.ArchAARCH64, specs.ArchARM},
		Syscalls: []specs.LinuxSyscall{
			deny(unix.EPERM, refusedCalls...),
			// On i386, one call for all of the socket calls, whose arguments a
			// filter cannot see. There, too, each has had its own since 4.3.
			deny(unix.ENOSYS, "socketcall"),
		},
	}
	// Families that are not bound to a network namespace, as AF_VSOCK is not,
	// lead out of a run.
	for family := uint64(0); family <= lastFamily; family++ {
		switch family {
		case unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK:
		default:
			profile.Syscalls = append(profile.Syscalls, denySocket(family, specs.OpEqualTo))
		}
	}
	profile.Syscalls = append(profile.Syscalls,
		// The kernel takes the low half of the argument alone, so that a large
		// one may be any family.
		denySocket(lastFamily, specs.OpGreaterThan),
		// Of netlink, only NETLINK_ROUTE: what shows addresses and routes.
		specs.LinuxSyscall{
			Names: []string{"socket"}, Action: specs.ActErrno, ErrnoRet: errno(unix.EAFNOSUPPORT),
			Args: []specs.LinuxSeccompArg{
				{Index: 0, Value: unix.AF_NETLINK, Op: specs.OpEqualTo},
				{Index: 2, Value: unix.NETLINK_ROUTE, Op: specs.OpNotEqual},
			},
		},
	)
	return profile
}

// lastFamily is the last address family that Linux knows, AF_MCTP.
const lastFamily = 45

// refusedCalls reach the kernel past what bounds a run, or have cost many a
// kernel its bounds.
var refusedCalls = []string{
	// A ring of its own beside the system calls that are filtered.
	"io_uring_setup", "io_uring_enter", "io_uring_register",
	"bpf", "perf_event_open", "userfaultfd",
	// Keys are not bound to a container.
	"add_key", "request_key", "keyctl",
	"kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module",
	// Opens files by number, around every mount.
	"open_by_handle_at",
}

func deny(e unix.Errno, names ...string) specs.LinuxSyscall {
	return specs.LinuxSyscall{Names: names, Action: specs.ActErrno, ErrnoRet: errno(e)}
}

func denySocket(family uint64, op specs.LinuxSeccompOperator) specs.LinuxSyscall {
	return specs.LinuxSyscall{
		Names: []string{"socket"}, Action: specs.ActErrno, ErrnoRet: errno(unix.EAFNOSUPPORT),
		Args: []specs.LinuxSeccompArg{{Index: 0, Value: family, Op: op}},
	}
}

func errno(e unix.Errno) *uint {
	number := uint(e)
	return &number
}
