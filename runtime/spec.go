package runtime

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// maskedPaths of the kernel's own filesystems tell about the host; as Docker's
// and runc's.
var maskedPaths = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
	"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
	"/sys/devices/virtual/powercap", "/sys/firmware",
}

// readonlyPaths of /proc change the host.
var readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

// The descriptors of the run's init: see helper/init.c.
const lifelineFD = "3"

// specification is the container in the terms of the OCI runtime specification.
func specification(cfg *Config, v *view) *specs.Spec {
	args := []string{Folder + "/" + initName}
	if cfg.Terminal {
		args = append(args, "--terminal")
	}
	args = append(args, lifelineFD, "--")
	umask := uint32(0o022)
	held := slices.Concat(capabilities, cfg.Capabilities)
	return &specs.Spec{
		Version:  specs.Version,
		Root:     &specs.Root{Path: v.root},
		Hostname: hostname(cfg.Hostname),
		Mounts:   kernelMounts(v),
		Process: &specs.Process{
			Terminal:        cfg.Terminal,
			Args:            append(args, cfg.Command...),
			Env:             cfg.Env,
			Cwd:             cfg.Workspace,
			User:            specs.User{Umask: &umask},
			NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{
				Bounding: held, Effective: held, Permitted: held,
			},
		},
		Linux: &specs.Linux{
			CgroupsPath: cgroupName(cfg.ID),
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.CgroupNamespace},
				{Type: specs.NetworkNamespace, Path: cfg.Network},
			},
			MaskedPaths:   append(append([]string{}, maskedPaths...), v.masked...),
			ReadonlyPaths: readonlyPaths,
			Resources:     resources(cfg.Limits),
		},
	}
}

// kernelMounts are the kernel's filesystems, which have to be mounted from
// within the container's namespaces. All else is in the tree already, but for
// /dev: libcontainer edits that unless it mounts what it is told to have there.
func kernelMounts(v *view) []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "bind", Source: v.devices(), Options: []string{"rbind"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
			Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
	}
}
