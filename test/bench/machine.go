package main

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine is where the benchmark ran, and what it has compared with.
type Machine struct {
	Processors int               `json:"processors"`
	Arch       string            `json:"arch"`
	MemoryGB   int               `json:"memory_gb"`
	Kernel     string            `json:"kernel"` // "6.18"
	Agent      string            `json:"agent"`
	Versions   map[string]string `json:"versions"` // of Debian's programs
}

// versionOf says how each program tells its version.
var versionOf = map[string][]string{
	"conmon":    {"conmon", "--version"},
	"curl":      {"curl", "--version"},
	"h2load":    {"h2load", "--version"},
	"mitmproxy": {"mitmdump", "--version"},
	"nghttpx":   {"nghttpx", "--version"},
	"nginx":     {"nginx", "-v"},
	"runc":      {"runc", "--version"},
	"wrk":       {"wrk", "-v"},
}

var versionNumber = regexp.MustCompile(`\d+(\.\d+)+`)

func (b *bench) describeMachine() (Machine, error) {
	m := Machine{Processors: runtime.NumCPU(), Arch: runtime.GOARCH, Versions: make(map[string]string)}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return m, err
	}
	m.MemoryGB = int((info.Totalram*uint64(info.Unit) + 1<<29) >> 30)
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return m, err
	}
	m.Kernel = regexp.MustCompile(`^\d+\.\d+`).FindString(unix.ByteSliceToString(name.Release[:]))
	out, err := b.output(b.command(b.agent, "version"))
	if err != nil {
		return m, err
	}
	m.Agent = strings.TrimPrefix(strings.TrimSpace(out), "agent ")
	for name, command := range versionOf {
		var out bytes.Buffer
		cmd := b.command(command[0], command[1:]...)
		cmd.Stdout, cmd.Stderr = &out, &out
		// Some exit with another code than 0 when asked for their version.
		if err := cmd.Run(); err != nil {
			if _, ran := errors.AsType[*exec.ExitError](err); !ran {
				return m, fmt.Errorf("%s is needed: %w", name, err)
			}
		}
		if m.Versions[name] = versionNumber.FindString(out.String()); m.Versions[name] == "" {
			return m, fmt.Errorf("%s tells no version: %s", strings.Join(command, " "), out.String())
		}
	}
	return m, nil
}

// String describes the machine in a line.
func (m Machine) String() string {
	return fmt.Sprintf("%d processors (%s), %d GB of memory, Linux %s", m.Processors, m.Arch, m.MemoryGB, m.Kernel)
}
