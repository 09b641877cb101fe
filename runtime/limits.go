package runtime

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"agentops/audit"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// DefaultPIDs is a run's limit of processes and threads if none is given.
const DefaultPIDs = 4096

// What a run cannot start with less of: its init is a program, too.
const (
	leastMemory    = 32 << 20 // bytes
	leastCPUs      = 0.01     // the kernel takes no quota below a millisecond
	leastPIDs      = 32
	leastOpenFiles = 64
)

// cpuPeriod is what a quota of processor time is a part of, in microseconds.
const cpuPeriod = 100_000

// CheckLimits returns limits as Config wants them, or why a run cannot have them.
// What is 0 is not limited, but for PIDs, which are by DefaultPIDs where the host
// can.
func CheckLimits(l audit.Limits) (audit.Limits, error) {
	controllers, err := listControllers()
	if err != nil {
		return l, err
	}
	for _, limit := range []struct {
		name, controller string
		given, enough    bool
		least            string
	}{
		{"memory", "memory", l.Memory != 0, l.Memory >= leastMemory, "32m"},
		{"cpus", "cpu", l.CPUs != 0, l.CPUs >= leastCPUs, "0.01"},
		{"pids", "pids", l.PIDs != 0, l.PIDs >= leastPIDs, strconv.Itoa(leastPIDs)},
		{"open files", "", l.OpenFiles != 0, l.OpenFiles >= leastOpenFiles, strconv.Itoa(leastOpenFiles)},
	} {
		switch {
		case !limit.given:
		case !limit.enough:
			return l, fmt.Errorf("limit of %s: a run needs at least %s", limit.name, limit.least)
		case limit.controller != "" && !slices.Contains(controllers, limit.controller):
			return l, fmt.Errorf("limit of %s: this host has no cgroup controller %q", limit.name, limit.controller)
		}
	}
	if l.PIDs == 0 && slices.Contains(controllers, "pids") {
		l.PIDs = DefaultPIDs
	}
	if l.OpenFiles != 0 {
		most, err := readNumber("/proc/sys/fs/nr_open")
		if err == nil && l.OpenFiles > most {
			err = fmt.Errorf("the kernel allows %d (fs.nr_open)", most)
		}
		if err != nil {
			return l, fmt.Errorf("limit of open files: %w", err)
		}
	}
	return l, nil
}

func readNumber(path string) (uint64, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(content)), 10, 64)
}

// listControllers are the cgroup controllers that containers of this host get:
// those of version 2 where there is nothing else, those of version 1 where both
// are.
func listControllers() ([]string, error) {
	mounts, err := listCgroupMounts()
	if err != nil {
		return nil, err
	}
	if cgroups.IsCgroup2UnifiedMode() {
		content, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
		if err != nil {
			return nil, fmt.Errorf("list cgroup controllers: %w", err)
		}
		return strings.Fields(string(content)), nil
	}
	var controllers []string
	for _, m := range mounts {
		if m.FSType == "cgroup" {
			controllers = append(controllers, strings.Split(m.VFSOptions, ",")...)
		}
	}
	return controllers, nil
}

// resources are what the run's cgroup is set to.
func resources(l audit.Limits) *specs.LinuxResources {
	r := &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}
	if l.Memory != 0 {
		r.Memory = &specs.LinuxMemory{Limit: &l.Memory}
		// None of it is swapped out beyond that, where the kernel keeps count.
		if cgroups.IsCgroup2UnifiedMode() || cgroups.PathExists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes") {
			r.Memory.Swap = &l.Memory
		}
	}
	if l.CPUs != 0 {
		quota, period := int64(l.CPUs*cpuPeriod), uint64(cpuPeriod)
		r.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
	}
	if l.PIDs != 0 {
		r.Pids = &specs.LinuxPids{Limit: &l.PIDs}
	}
	return r
}

// rlimits are what the run's processes inherit: the agent's own, which they may
// lack the capability to raise, but for what is given.
func rlimits(l audit.Limits) []configs.Rlimit {
	if l.OpenFiles == 0 {
		return nil
	}
	return []configs.Rlimit{{Type: unix.RLIMIT_NOFILE, Hard: l.OpenFiles, Soft: l.OpenFiles}}
}
