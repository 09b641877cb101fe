//go:build seccomp

package runtime

import (
	"runtime"

	"github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"
)

// hasSeccomp: the names of system calls, which are libseccomp's, are known.
const hasSeccomp = true

// x32Calls begins the numbers of the x32 calls of x86-64.
const x32Calls = 1 << 30

// readCallTables reads the tables of libseccomp, and what is newer.
func readCallTables() callTables {
	if runtime.GOARCH == "arm64" {
		return callTables{
			unix.AUDIT_ARCH_AARCH64: {readCallTable(seccomp.ArchARM64, 0)},
			unix.AUDIT_ARCH_ARM:     {readCallTable(seccomp.ArchARM, 0), readCallTable(seccomp.ArchARM, armCalls)},
		}
	}
	return callTables{
		unix.AUDIT_ARCH_X86_64: {readCallTable(seccomp.ArchAMD64, 0), readCallTable(seccomp.ArchX32, x32Calls)},
		unix.AUDIT_ARCH_I386:   {readCallTable(seccomp.ArchX86, 0)},
	}
}

// armCalls begins the numbers of the calls that only ARM has.
const armCalls = 0xf0000

// lastCall is above every number but those of ARM alone; x32 has some up to 547.
const lastCall = 600

func readCallTable(arch seccomp.ScmpArch, first uint32) callTable {
	t := callTable{first: first, names: make([]string, lastCall)}
	used := 1
	for i := range t.names {
		name, err := seccomp.ScmpSyscall(first + uint32(i)).GetNameByArch(arch)
		if n := i - firstNewCall; err != nil && n >= 0 && n < len(newCalls) && first != armCalls {
			name, err = newCalls[n], nil
		}
		if err == nil {
			t.names[i], used = name, i+1
		}
	}
	t.names = t.names[:used]
	return t
}
