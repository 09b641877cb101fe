package runtime

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// capabilities are Docker's default set less NET_RAW: packages can be installed
// with them, and nothing of the host can be reached.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// addableCapabilities bound what a process does to its own run: to the memory that
// it may lock, to System V objects, which are the run's own, and to leases on files
// of other users, which hold up for 45 seconds who opens one in the workspace.
var addableCapabilities = []string{"CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_LEASE"}

// refusedCapabilities would let root in a run out of it, or at the host; each
// says how.
var refusedCapabilities = map[string]string{
	"CAP_AUDIT_CONTROL":      "the audit of the kernel is the host's",
	"CAP_AUDIT_READ":         "the audit of the kernel is the host's",
	"CAP_BLOCK_SUSPEND":      "it keeps the host awake",
	"CAP_BPF":                "programs in the kernel see and change what is not the run's",
	"CAP_CHECKPOINT_RESTORE": "it opens the memory and the files of other processes",
	"CAP_DAC_READ_SEARCH":    "it opens files by number, around every mount",
	"CAP_LINUX_IMMUTABLE":    "it makes files that could not be removed when the run is over",
	"CAP_MAC_ADMIN":          "security modules guard the host",
	"CAP_MAC_OVERRIDE":       "security modules guard the host",
	"CAP_NET_ADMIN":          "a run's network is given to it",
	"CAP_NET_BROADCAST":      "it hears of other network namespaces",
	"CAP_NET_RAW":            "raw and packet sockets pass by the proxy",
	"CAP_PERFMON":            "it sees into the kernel and into other processes",
	"CAP_SYSLOG":             "the kernel's messages are the host's",
	"CAP_SYS_ADMIN":          "it mounts, enters namespaces and loads eBPF: there would be no boundary",
	"CAP_SYS_BOOT":           "it restarts the host",
	"CAP_SYS_MODULE":         "a module is the kernel",
	"CAP_SYS_NICE":           "a real-time process takes the host's processors, whatever --cpus says",
	"CAP_SYS_PACCT":          "the kernel would write files for it",
	"CAP_SYS_PTRACE":         "it could take over the run's init, which ends the run when agent is gone",
	"CAP_SYS_RAWIO":          "it reaches the host's memory and devices",
	"CAP_SYS_RESOURCE":       "it lifts the limits of the run",
	"CAP_SYS_TIME":           "the clock is the host's",
	"CAP_SYS_TTY_CONFIG":     "consoles are the host's",
	"CAP_WAKE_ALARM":         "it wakes the host",
}

// AddableCapabilities are those, beside the usual ones, that a run may be given:
// CAP_ and upper case, sorted.
func AddableCapabilities() []string { return slices.Clone(addableCapabilities) }

// KnownCapabilities are all that the kernel has, sorted.
func KnownCapabilities() []string {
	return slices.Sorted(slices.Values(slices.Concat(capabilities, addableCapabilities, slices.Collect(maps.Keys(refusedCapabilities)))))
}

// UnknownCapabilityError says that there is no capability of a name.
type UnknownCapabilityError struct{ Name string }

func (e *UnknownCapabilityError) Error() string {
	return fmt.Sprintf("capability %q: there is none of that name", e.Name)
}

// CheckCapability returns the name of a capability as Config wants it, or why a
// run cannot have it. CAP_ may be left out, and the case is free. The error is an
// *UnknownCapabilityError when there is none of that name.
func CheckCapability(name string) (string, error) {
	full := "CAP_" + strings.TrimPrefix(strings.ToUpper(name), "CAP_")
	if why, ok := refusedCapabilities[full]; ok {
		return "", fmt.Errorf("capability %s cannot be added: %s", full, why)
	}
	if !slices.Contains(capabilities, full) && !slices.Contains(addableCapabilities, full) {
		return "", &UnknownCapabilityError{name}
	}
	return full, nil
}
