package runtime

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestCheckCapability(t *testing.T) {
	for name, want := range map[string]string{
		"IPC_LOCK": "CAP_IPC_LOCK", "cap_lease": "CAP_LEASE", "Cap_Ipc_Owner": "CAP_IPC_OWNER", "chown": "CAP_CHOWN",
	} {
		if got, err := CheckCapability(name); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %s", name, got, err, want)
		}
	}
	for _, name := range []string{
		"SYS_ADMIN", "SYS_MODULE", "SYS_PTRACE", "BPF", "PERFMON", "NET_ADMIN", "NET_RAW", "SYS_RAWIO", "SYS_BOOT", "SYS_TIME",
		"SYS_RESOURCE", "DAC_READ_SEARCH", "MAC_ADMIN", "MAC_OVERRIDE", "SYSLOG", "CHECKPOINT_RESTORE", "cap_sys_admin",
	} {
		_, err := CheckCapability(name)
		_, unknown := errors.AsType[*UnknownCapabilityError](err)
		if err == nil || unknown || !strings.Contains(err.Error(), "cannot be added: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"ALL", "", "CAP_", "SYS_ADMIN ", "CAP_CAP_CHOWN"} {
		if _, err := CheckCapability(name); err == nil {
			t.Errorf("%q was taken", name)
		}
	}
	last, err := readNumber("/proc/sys/kernel/cap_last_cap")
	if known := KnownCapabilities(); err != nil || uint64(len(known)) < last+1 || !slices.IsSorted(known) {
		t.Errorf("%d capabilities are known, the kernel's last one is %d, %v: %q", len(known), last, err, known)
	}
}

func TestAddedCapabilities(t *testing.T) {
	cfg := newConfig(t, "grep", "CapEff", "/proc/self/status")
	cfg.Capabilities = AddableCapabilities()
	const usual = 0xa80405fb
	want := fmt.Sprintf("CapEff:\t%016x\n", usual|1<<14|1<<15|1<<28)
	if _, output := runConfig(t, cfg); output != want {
		t.Errorf("%q, want %q", output, want)
	}
}
