package runtime

import (
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// capabilities are Docker's default set less NET_RAW: packages can be installed
// with them, and nothing of the host can be reached.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// maskedPaths of the kernel's own filesystems tell about the host; as Docker's
// and runc's.
var maskedPaths = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
	"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
	"/sys/devices/virtual/powercap", "/sys/firmware",
}

// readonlyPaths of /proc change the host.
var readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

// The descriptors of the run's init: see helper/program.
const lifelineFD = "3"

// specification is the container in the terms of the OCI runtime specification.
func specification(cfg *Config, v *view) *specs.Spec {
	args := []string{HelperPath, "init"}
	if cfg.Terminal {
		args = append(args, "--terminal")
	}
	args = append(args, lifelineFD, "--")
	umask := uint32(0o022)
	return &specs.Spec{
		Version:  specs.Version,
		Root:     &specs.Root{Path: v.root},
		Hostname: hostname(cfg.Hostname),
		Mounts:   mounts(cfg, v),
		Process: &specs.Process{
			Terminal:        cfg.Terminal,
			Args:            append(args, cfg.Command...),
			Env:             cfg.Env,
			Cwd:             cfg.Workspace,
			User:            specs.User{Umask: &umask},
			NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{
				Bounding: capabilities, Effective: capabilities, Permitted: capabilities,
			},
			// No resource limits: the command inherits the agent's, which it may
			// lack the capability to raise.
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
			Resources: &specs.LinuxResources{
				Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
			},
		},
	}
}

// mounts is what is mounted into the tree, in order: the kernel's filesystems,
// empty folders, what the user gives, and what nothing may cover.
func mounts(cfg *Config, v *view) []specs.Mount {
	list := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		// Always a fresh /dev: libcontainer edits the one that it finds.
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
			Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
			Options: []string{"nosuid", "noexec", "nodev", "mode=1777"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
			Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
	}
	for _, folder := range freshFolders {
		if path := resolve(folder.path); cfg.Rootfs == "" && within(path, v.fresh...) {
			list = append(list, specs.Mount{Destination: path, Type: "tmpfs", Source: "tmpfs",
				Options: []string{"nosuid", "nodev", "mode=" + folder.mode}})
		}
	}
	list = append(list, bind(cfg.Workspace, cfg.Workspace, false))
	for _, m := range cfg.Mounts {
		list = append(list, bind(m.Source, m.Destination, m.ReadOnly))
	}
	for _, name := range []string{"resolv.conf", "hosts", "hostname"} {
		list = append(list, bind(filepath.Join(v.stage, name), "/etc/"+name, true))
	}
	agentops := filepath.Join(v.stage, "agentops")
	for _, path := range v.bundles {
		list = append(list, bind(filepath.Join(agentops, bundleName), path, true))
	}
	return append(list, bind(agentops, agentopsFolder, true))
}

// bind mounts a folder with what is mounted in it, or a file. Nothing of the
// host's becomes a device or changes the user in the run.
func bind(source, destination string, readOnly bool) specs.Mount {
	options := []string{"rbind", "nodev", "nosuid", "rw"}
	if readOnly {
		options = []string{"rbind", "nodev", "nosuid", "ro", "rro"}
	}
	return specs.Mount{Destination: destination, Type: "bind", Source: source, Options: options}
}
