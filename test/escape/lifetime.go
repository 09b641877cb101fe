package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"agentops/test/escape/attempt"

	"golang.org/x/sys/unix"
)

// firstConnect is the first thing that the command of a run does.
func firstConnect() attempt.Result {
	p := probe{name: "first-connect", class: "time", record: attempt.Flow}
	t := &try{stage: &attempt.Stage{}, name: p.name}
	setComm(p.name)
	v := t.tcp(at4(443))
	return p.result(v.outcome, v.detail, v.took)
}

// timeProbes try to be too early, or too late. What outlives a run, and what is
// left when its agent is killed or stopped, the host looks at.
func timeProbes() []probe {
	list := []probe{
		{name: "many-at-once", record: attempt.Flow, try: func(t *try) verdict {
			// A hundred connections at a time: none is let past.
			results := make(chan verdict, 100)
			for range cap(results) {
				go func() {
					one := &try{stage: t.stage, name: t.name}
					results <- one.tcp(at4(443))
				}()
			}
			worst := t.say(attempt.Blocked, "all of %d", cap(results))
			for range cap(results) {
				if v := <-results; v.outcome != attempt.Blocked {
					worst = v
				}
			}
			worst.took = 0 // of no single one
			return worst
		}},
		{name: "orphan", record: attempt.Flow, try: func(t *try) verdict {
			// A process of which nobody is the parent any more.
			return t.child(&syscall.SysProcAttr{Setsid: true}, "/proc/self/exe")
		}},
		{name: "outlives", try: func(t *try) verdict {
			cmd := exec.Command("/proc/self/exe", "-mode", "linger", "-stage", os.Args[2])
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			if err := cmd.Start(); err != nil {
				return t.silent("%v", err)
			}
			return t.say(attempt.Blocked, "it is for the end of the run to end process %d", cmd.Process.Pid)
		}},
		{name: "open-files", record: attempt.Flow, try: func(t *try) verdict {
			// Every descriptor that a process may have, a connection.
			limit := unix.Rlimit{Cur: 128, Max: 128}
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
				return t.silent("%v", err)
			}
			_, sa := sockaddr(at4(443))
			var fds []int
			for {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					break
				}
				_ = connect(fd, sa)
				fds = append(fds, fd)
			}
			for _, fd := range fds[1:] {
				unix.Close(fd)
			}
			defer unix.Close(fds[0])
			t.start()
			return t.converse(fds[0])
		}},
	}
	for i := range list {
		list[i].class = "time"
	}
	return list
}

// child makes the attempt in a process of this program's own, by a path.
func (t *try) child(attr *syscall.SysProcAttr, path string) verdict {
	var out bytes.Buffer
	cmd := exec.Command(path, "-mode", "linger", "-stage", os.Args[2], "-probe", t.name)
	cmd.Args[0] = "escape"
	cmd.SysProcAttr = attr
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil {
		return t.silent("%v", err)
	}
	var result attempt.Result
	if err := json.Unmarshal(out.Bytes(), &result); err != nil {
		return t.silent("%v", err)
	}
	return verdict{result.Outcome, result.Detail, time.Duration(result.Micros) * time.Microsecond}
}

// fromHostilePath connects from an executable with a name that is made to be
// printed.
func (t *try) fromHostilePath(name string) verdict {
	dir, err := os.MkdirTemp("/tmp", "escape-")
	if err != nil {
		return t.silent("%v", err)
	}
	defer func() { _ = os.RemoveAll(dir) }() // it is gone with the run
	program, err := os.ReadFile("/proc/self/exe")
	path := filepath.Join(dir, name)
	if err == nil {
		err = os.WriteFile(path, program, 0o755)
	}
	if err != nil {
		return t.silent("%v", err)
	}
	return t.child(nil, path)
}

// linger, for an attempt, makes it once; else it goes on for ever, as fast as it
// is let.
func linger(stagePath string) error {
	stage, err := readStage(stagePath)
	if err != nil {
		return err
	}
	name := "lingers"
	for i, arg := range os.Args {
		if arg == "-probe" && i+1 < len(os.Args) {
			name = os.Args[i+1]
		}
	}
	if err := register(stage, name); err != nil {
		return err
	}
	t := &try{stage: stage, name: name}
	if name != "lingers" {
		v := t.tcp(at4(443))
		p := probe{name: name}
		return json.NewEncoder(os.Stdout).Encode(p.result(v.outcome, v.detail, v.took))
	}
	setComm(name)
	for first := true; ; first = false {
		_ = t.tcp(at4(443))
		_ = t.datagram(at4(9999), unix.SOCK_DGRAM, 0, t.payload())
		_ = t.ask(netip.AddrPortFrom(outside4, 53), t.label()+"."+attempt.Refused, 1)
		if first {
			fmt.Println("lingers")
		}
		time.Sleep(10 * time.Millisecond)
	}
}
