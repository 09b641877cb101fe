// Package runtime is a run as a container: what it sees of the filesystem, what
// it may do, and its life from creation to the last trace of it on the host.
//
// It and its package child are the only ones that know libcontainer, whose API changes
// freely.
package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"agentops/audit"
	_ "agentops/runtime/child" // becomes the first process of each container
)

// Init is called from an init function of every main package, and of every test
// binary, that creates containers. Such a program is started again as the first
// process of each container, which package child then sets up.
//
// Init ties the main goroutine to the process's first thread, so that no other
// goroutine can: that thread must never be one that has left the host's namespaces,
// for /proc/self is its view.
func Init() { runtime.LockOSThread() }

// Config describes a run's container. Create does not keep or change what its
// fields refer to.
type Config struct {
	// ID is the run's id, of the characters A-Z a-z 0-9 _ . - and unique on
	// this host; its cgroup is /agentops-ID.
	ID string

	// Folder is the run's folder on disk, for the run's changes to the
	// filesystem, which go away with the container.
	Folder string

	// Live is a folder of this run alone, on a tmpfs by preference, for what
	// libcontainer keeps while the container lives.
	Live string

	// Network is the path of the network namespace to join.
	Network string

	// Rootfs is the tree that the run sees, as Checker.Rootfs returns it. Empty:
	// the host's own, less what it must not see.
	Rootfs string

	// Workspace is the folder that the run works in and may change, as
	// Checker.Workspace returns it.
	Workspace string

	// Mounts are further folders and files of the host, as Checker.Mount returns
	// them.
	Mounts []Mount

	Command  []string
	Env      []string // complete; see Environ
	Hostname string   // cut to the 64 bytes that the kernel keeps

	// Capabilities are given beside the usual ones, as CheckCapability returns
	// them.
	Capabilities []string

	// Limits are as CheckLimits returns them; what is 0 is not limited.
	Limits audit.Limits

	// Terminal gives the command a terminal of its own, which Create connects
	// with Stdin and Stdout; Stderr is then not used. Without it the three are
	// the command's own. A nil file is /dev/null.
	Terminal              bool
	Stdin, Stdout, Stderr *os.File

	Init       []byte          // the image of the run's PID 1, helper/init.c
	Files      map[string]File // by path below /agentops, read-only in the run
	Bundle     []byte          // trusted CA certificates, PEM; nil leaves the view's own
	Authority  []byte          // the one of them that is the run's own, PEM
	ResolvConf []byte
	Hosts      []byte

	// Refused is told of each system call that was refused as a part of the
	// boundary, while its caller waits. When it returns an error, the container
	// is killed, and Wait returns that. After Wait it is not called any more. It
	// may be nil.
	Refused func(Refusal) error `json:"-"`

	// Cgroup, when set, is called with the folder of the run's cgroup of version
	// 2, before there is a process in it.
	Cgroup func(folder string) `json:"-"`

	// Hidden are paths that the run must not see, in addition to the usual
	// ones: the state and run folders of AgentOps.
	Hidden []string
}

// Mount is a folder or file of the host that a run sees.
type Mount struct {
	Source      string
	Destination string
	ReadOnly    bool
}

// File is the content of a file in a run's /agentops.
type File struct {
	Content []byte
	Mode    os.FileMode // of its permission bits; 0: 0444
}

// Status is how a command ended.
type Status struct {
	// Code is the command's exit code, or 128+n for signal n.
	Code int
	// Signal is what killed the command, else nil.
	Signal os.Signal
}

// check finds what would otherwise fail halfway.
func (cfg *Config) check() error {
	if cfg.ID == "" || strings.Trim(cfg.ID, idCharacters) != "" {
		return fmt.Errorf("run id %q: only letters, digits, '_', '.' and '-' are allowed", cfg.ID)
	}
	if len(cfg.Command) == 0 {
		return errors.New("no command was given")
	}
	if len(cfg.Init) == 0 {
		return errors.New("no init was given")
	}
	for name, path := range map[string]string{
		"run folder": cfg.Folder, "live folder": cfg.Live, "network namespace": cfg.Network, "workspace": cfg.Workspace,
	} {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%s %q: the path must be absolute", name, path)
		}
	}
	for name := range cfg.Files {
		if !filepath.IsLocal(name) || slices.Contains([]string{initName, bundleName, authorityName, javaStoreName}, name) {
			return fmt.Errorf("file %q of /agentops: the name cannot be used", name)
		}
	}
	return nil
}

const idCharacters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"
