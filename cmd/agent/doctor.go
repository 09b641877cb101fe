package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"agentops/bpf"
	"agentops/netns"
	"agentops/runtime"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// finding is what doctor found of one need.
type finding struct {
	Check    string `json:"check"`
	OK       bool   `json:"ok"`
	Found    string `json:"found"`
	Needs    string `json:"needs"`              // what it takes, with the minimum version
	Optional bool   `json:"optional,omitempty"` // runs go without it
	Hint     string `json:"hint,omitempty"`
}

func newDoctorCommand(e *env) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this host has and lacks for runs",
		Long:  "Say what this host has and lacks for runs. The exit code is 1 when runs cannot work.",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			findings := e.examine()
			if err := e.printFindings(findings, asJSON); err != nil {
				return err
			}
			for _, f := range findings {
				if !f.OK && !f.Optional {
					return &exitError{code: 1}
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	return cmd
}

func (e *env) printFindings(findings []finding, asJSON bool) error {
	if asJSON {
		encoder := json.NewEncoder(e.stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(findings)
	}
	table := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	for _, f := range findings {
		verdict := "ok"
		switch {
		case !f.OK && f.Optional:
			verdict = "warn"
		case !f.OK:
			verdict = "LACKS"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t(needs %s)\n", verdict, f.Check, f.Found, f.Needs)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, f := range findings {
		if !f.OK && f.Hint != "" {
			fmt.Fprintf(e.stdout, "agent: hint: %s: %s\n", f.Check, f.Hint)
		}
	}
	return nil
}

// examine looks at everything that a run needs. It changes nothing.
func (e *env) examine() []finding {
	root := finding{Check: "root", OK: e.uid == 0, Found: fmt.Sprintf("uid %d", e.uid), Needs: "uid 0", Hint: "sudo agent doctor"}
	kernel := finding{Check: "kernel", OK: kernelRelease() != "", Found: kernelRelease(), Needs: "Linux 5.12"}
	findings := []finding{
		root,
		kernel,
		check("BPF sk_lookup", "Linux "+bpf.MinimumKernel, "the kernel is too old, or eBPF is switched off", bpf.Supported),
		check("kernel types", "BTF, Linux 5.4 with CONFIG_DEBUG_INFO_BTF", "without it no process can be named", func() error { _, err := bpf.ReadLayout(); return err }),
		check("network namespace", "Linux 5.9 with CONFIG_NET_NS", "", tryNamespace),
		check("mount_setattr", "Linux 5.12", "the kernel is too old", tryMountSetattr),
		check("cgroup2", "a cgroup2 mount, Linux 4.5", "mount -t cgroup2 none /sys/fs/cgroup/unified", func() error { return inFile("/proc/self/mounts", " cgroup2 ", "no cgroup2 is mounted") }),
		check("overlay", "overlayfs, Linux 4.0", "modprobe overlay", func() error {
			return inFile("/proc/filesystems", "\toverlay\n", "the kernel does not know overlayfs")
		}),
		check("state folder", "a folder that can be written", "set AGENTOPS_STATE_DIR", func() error { return writable(e.stateDir()) }),
		check("run folder", "a folder that can be written", "set AGENTOPS_RUN_DIR", func() error { return writable(e.runDir()) }),
		check("trusted roots", "a CA bundle of the system", "apt-get install ca-certificates", trustedRoots),
	}
	ipv6 := check("IPv6", "IPv6 in the kernel, for IPv6 within runs", "", func() error {
		_, err := os.Stat("/proc/sys/net/ipv6")
		return err
	})
	ipv6.Optional = true
	return append(findings, ipv6)
}

func check(name, needs, hint string, try func() error) finding {
	f := finding{Check: name, OK: true, Found: "there", Needs: needs, Hint: hint}
	if err := try(); err != nil {
		f.OK, f.Found = false, err.Error()
	}
	return f
}

func tryNamespace() error {
	ns, err := netns.New()
	if err != nil {
		return err
	}
	return ns.Close()
}

// tryMountSetattr asks for the newest system call that runs are mounted with; a
// bad descriptor is refused only by who knows it.
func tryMountSetattr() error {
	err := unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	if errors.Is(err, unix.ENOSYS) {
		return err
	}
	return nil
}

// inFile looks for what a line of one of the kernel's lists has in it.
func inFile(path, part, otherwise string) error {
	content, err := os.ReadFile(path)
	if err == nil && !strings.Contains(string(content), part) {
		err = errors.New(otherwise)
	}
	return err
}

// nearestFolder is the folder itself or the first of its parents that exists.
func nearestFolder(path string) string {
	for {
		if _, err := os.Stat(path); err == nil || path == "/" {
			return path
		}
		path = filepath.Dir(path)
	}
}

func writable(path string) error {
	folder := nearestFolder(path)
	if err := unix.Access(folder, unix.W_OK); err != nil {
		return fmt.Errorf("%s: %w", folder, err)
	}
	return nil
}

func trustedRoots() error {
	bundle, err := runtime.SystemBundle()
	if err == nil && bundle == nil {
		err = errors.New("none of the usual files is there")
	}
	return err
}
