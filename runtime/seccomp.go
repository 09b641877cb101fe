package runtime

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// compileFilter makes the filter of a run's system calls. It lets pass what is
// known to be harmless, and refers all else to the refuser, which refuses and
// records it. What none of the machine's tables of calls has is newer than they
// are, and answered with ENOSYS, so that a libc falls back to what it used
// before.
//
// 32-bit and x32 calls get the verdicts of a machine's native ones. Where a call
// is judged by its arguments, the filter looks at the 32 bits of each that the
// kernel takes.
//
// It is compiled here, and not by libcontainer with libseccomp, because that took
// 80 of a start's 250 ms, cannot refer by default, and makes alternatives of two
// conditions on one argument.
func compileFilter(known callTables) ([]byte, error) {
	raw, err := bpf.Assemble(filterProgram(known))
	if err != nil {
		return nil, fmt.Errorf("compile the filter of system calls: %w", err)
	}
	// An array of the kernel's struct sock_filter.
	image := make([]byte, 0, 8*len(raw))
	for _, r := range raw {
		image = binary.NativeEndian.AppendUint16(image, r.Op)
		image = append(image, r.Jt, r.Jf)
		image = binary.NativeEndian.AppendUint32(image, r.K)
	}
	return image, nil
}

// Offsets in the kernel's struct seccomp_data, on which the filter works.
const (
	numberOffset = 0
	archOffset   = 4
	argsOffset   = 16 // of 8 bytes each, the lower half first
)

func loadArg(index uint32) bpf.Instruction {
	return bpf.LoadAbsolute{Off: argsOffset + 8*index, Size: 4}
}

var (
	pass    = bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}
	refer   = bpf.RetConstant{Val: unix.SECCOMP_RET_USER_NOTIF}
	unknown = bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)}
)

func filterProgram(known callTables) []bpf.Instruction {
	program := []bpf.Instruction{bpf.LoadAbsolute{Off: archOffset, Size: 4}}
	allowed := make(map[string]bool, len(allowedCalls))
	for _, name := range allowedCalls {
		allowed[name] = true
	}
	for arch, tables := range known {
		// Of the two tables of x86-64, a bit of the number chooses.
		section := []bpf.Instruction{bpf.LoadAbsolute{Off: numberOffset, Size: 4}}
		for _, t := range tables {
			part := t.verdicts(allowed)
			section = append(section,
				bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: t.first, SkipFalse: 2},
				bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: t.first + uint32(len(t.names)) - 1, SkipTrue: 1},
				bpf.Jump{Skip: 1},
				bpf.Jump{Skip: uint32(len(part))})
			section = append(section, part...)
		}
		section = append(section, unknown)
		program = append(program, bpf.JumpIf{Cond: bpf.JumpEqual, Val: arch, SkipTrue: 1}, bpf.Jump{Skip: uint32(len(section))})
		program = append(program, section...)
	}
	return append(program, unknown)
}

// callTables are the system calls that a process on this machine can make, by
// AUDIT_ARCH_* and the parts of the numbers there.
type callTables map[uint32][]callTable

// callTable is the names of system calls by their numbers, from first on; empty
// where there is none.
type callTable struct {
	first uint32
	names []string
}

// namedCalls is a callTable as generate_calls.go writes it: a name on each line.
type namedCalls struct {
	arch, first uint32
	names       string
}

func readCallTables() callTables {
	known := make(callTables)
	for _, t := range machineCalls {
		known[t.arch] = append(known[t.arch], callTable{t.first, strings.Split(t.names, "\n")})
	}
	return known
}

// name is empty for a number that is in no table.
func (known callTables) name(arch, number uint32) string {
	for _, t := range known[arch] {
		if i := number - t.first; i < uint32(len(t.names)) {
			return t.names[i]
		}
	}
	return ""
}

// stretch is consecutive numbers with the same verdict.
type stretch struct {
	first   uint32
	verdict []bpf.Instruction
}

// verdicts finds a number's verdict by halves.
func (t callTable) verdicts(allowed map[string]bool) []bpf.Instruction {
	var stretches []stretch
	last := ""
	for i, name := range t.names {
		kind, verdict := "refer", refer
		arguments := byArguments[name]
		switch {
		case name == "":
			kind, verdict = "unknown", unknown
		case arguments != nil:
			kind = name
		case allowed[name]:
			kind, verdict = "pass", pass
		}
		if kind == last {
			continue
		}
		last = kind
		s := stretch{t.first + uint32(i), []bpf.Instruction{verdict}}
		if arguments != nil {
			s.verdict = arguments()
		}
		stretches = append(stretches, s)
	}
	return halve(nil, stretches)
}

// halve appends to code what finds a number's verdict among stretches.
func halve(code []bpf.Instruction, stretches []stretch) []bpf.Instruction {
	if len(stretches) == 1 {
		return append(code, stretches[0].verdict...)
	}
	middle, at := len(stretches)/2, len(code)
	code = append(code, bpf.JumpIf{Cond: bpf.JumpLessThan, Val: stretches[middle].first, SkipTrue: 1}, nil)
	code = halve(code, stretches[:middle])
	code[at+1] = bpf.Jump{Skip: uint32(len(code) - at - 2)}
	return halve(code, stretches[middle:])
}

// byArguments are the calls of which some are allowed. clone3 has its flags in
// memory, where a filter cannot look, so that there is none: every libc falls back
// to clone. To refer it would cost each new thread a way to the refuser and back.
var byArguments = map[string]func() []bpf.Instruction{
	"clone":       judgeClone,
	"clone3":      func() []bpf.Instruction { return []bpf.Instruction{unknown} },
	"unshare":     judgeClone,
	"personality": judgePersonality,
	"socket":      judgeSocket,
	"socketpair":  judgeSocketpair,
}

// namespaceFlags ask for namespaces, of clone and unshare. For clone the
// last one is a part of a signal's number, which no libc uses.
const namespaceFlags = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWTIME

func judgeClone() []bpf.Instruction {
	return []bpf.Instruction{
		loadArg(0),
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: namespaceFlags, SkipTrue: 1},
		pass,
		refer,
	}
}

// judgePersonality lets a process be what it usually is, 32-bit, of version 2.6,
// both of these, or at fixed addresses, and ask what it is.
func judgePersonality() []bpf.Instruction {
	return append([]bpf.Instruction{loadArg(0)}, oneOf(0, 0x8, 0x20000, 0x20008, 0x40000, 0xffffffff)...)
}

// oneOf passes what was loaded if it is one of the values.
func oneOf(values ...uint32) []bpf.Instruction {
	var code []bpf.Instruction
	for _, value := range values {
		code = append(code, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: value, SkipTrue: 1}, pass)
	}
	return append(code, refer)
}

func judgeSocketpair() []bpf.Instruction {
	return append([]bpf.Instruction{loadArg(0)}, oneOf(unix.AF_UNIX)...)
}

// socketKind is the part of socket's second argument that is a type; the rest are
// flags.
const socketKind = 0xf

// judgeSocket lets a run have unix sockets, TCP and UDP, and of netlink what shows
// addresses and routes. Families that are not bound to a network namespace lead
// out of it; raw sockets and other transports pass by what redirects. MPTCP is
// plain TCP to the proxy, which speaks no more.
func judgeSocket() []bpf.Instruction {
	kind := []bpf.Instruction{loadArg(1), bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: socketKind}}
	protocol := func(values ...uint32) []bpf.Instruction {
		return append([]bpf.Instruction{loadArg(2)}, oneOf(values...)...)
	}
	inet := slices.Concat(kind, choose(map[uint32][]bpf.Instruction{
		unix.SOCK_STREAM: protocol(0, unix.IPPROTO_TCP, unix.IPPROTO_MPTCP),
		unix.SOCK_DGRAM:  protocol(0, unix.IPPROTO_UDP),
	}))
	return append([]bpf.Instruction{loadArg(0)}, choose(map[uint32][]bpf.Instruction{
		unix.AF_UNIX:    {pass},
		unix.AF_NETLINK: protocol(unix.NETLINK_ROUTE),
		unix.AF_INET:    inet,
		unix.AF_INET6:   inet,
	})...)
}

// choose goes on with what was loaded chooses; anything else is referred.
func choose(ways map[uint32][]bpf.Instruction) []bpf.Instruction {
	var code []bpf.Instruction
	for value, way := range ways {
		code = append(code, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: value, SkipTrue: uint8(len(way))})
		code = append(code, way...)
	}
	return append(code, refer)
}
