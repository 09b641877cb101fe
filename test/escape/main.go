// Command escape tries to get out of a run. Each attempt is a process of its own,
// so that the journal's records can be told apart; what comes of it is printed as
// a line of JSON. Whether anything has arrived where it must not, only who stands
// there can tell: see agent selftest.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"agentops/test/escape/attempt"

	"golang.org/x/sys/unix"
)

const (
	// limit ends an attempt of which nothing is heard.
	limit = 4 * time.Second
	// prompt is how long a refusal may take. A slower one is tried again, since
	// a busy machine is not a slow refusal.
	prompt = 100 * time.Millisecond
	tries  = 5
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "escape: %v\n", err)
		os.Exit(1)
	}
}

// options are the program's flags.
type options struct {
	stage string
	only  string
	probe string
	uid   int
	plain bool
	mode  string
}

func run(args []string) error {
	var o options
	flags := flag.NewFlagSet("escape", flag.ContinueOnError)
	flags.StringVar(&o.stage, "stage", "", "`FILE` that describes the stage")
	flags.StringVar(&o.only, "only", "", "try these `CLASSES` alone, joined by commas")
	flags.StringVar(&o.probe, "probe", "", "make one attempt, in this process")
	flags.IntVar(&o.uid, "uid", 0, "make the attempts as this user")
	flags.BoolVar(&o.plain, "plain", false, "outside of a run: only what sends, and touches nothing else")
	flags.StringVar(&o.mode, "mode", "all", "all, kernel, linger")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case o.mode == "kernel":
		return describeKernel()
	case o.mode == "linger":
		return linger(o.stage)
	case o.probe != "":
		return perform(o)
	}
	return attemptAll(o)
}

// attemptAll makes the attempts one after the other.
func attemptAll(o options) error {
	inherited := openFiles()
	out := json.NewEncoder(os.Stdout)
	// Before anything else: there is no moment at which the way out is open.
	first := firstConnect()
	stage, err := readStage(o.stage)
	if err != nil {
		return err
	}
	if wanted(first.Class, o.only) && !o.plain && o.uid == 0 {
		if err := register(stage, first.Name); err != nil {
			return err
		}
		if err := out.Encode(first); err != nil {
			return err
		}
	}
	for _, p := range probes(stage) {
		if !wanted(p.class, o.only) || o.plain && !p.plain {
			continue
		}
		result := p.result(attempt.NotApplicable, "", 0)
		if result.Detail = p.missing(stage, o); result.Detail == "" {
			result = inChildren(o, p, inherited)
		}
		if err := out.Encode(result); err != nil {
			return err
		}
	}
	return nil
}

func wanted(class, only string) bool {
	return only == "" || slices.Contains(strings.Split(only, ","), class)
}

func readStage(path string) (*attempt.Stage, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var stage attempt.Stage
	return &stage, json.Unmarshal(content, &stage)
}

// inChildren makes one attempt, again if it was slow, and returns the best.
func inChildren(o options, p probe, inherited string) attempt.Result {
	best := inChild(o, p, inherited)
	for range tries - 1 {
		slow := best.Outcome == attempt.Silent || best.Outcome != attempt.Reached && best.Micros > prompt.Microseconds()
		if o.plain || !slow {
			break
		}
		if again := inChild(o, p, inherited); again.Outcome != attempt.Silent {
			best = again
		}
	}
	return best
}

// inChild makes one attempt in a process of its own.
func inChild(o options, p probe, inherited string) attempt.Result {
	args := []string{"-stage", o.stage, "-probe", p.name}
	if o.plain {
		args = append(args, "-plain")
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = "escape"
	cmd.Env = append(os.Environ(), "ESCAPE_INHERITED="+inherited)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second // what an attempt leaves behind may hold its output
	if o.uid != 0 {
		id := uint32(o.uid)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id}}
	}
	if err := cmd.Start(); err != nil {
		return p.result(attempt.Silent, "start the attempt: "+err.Error(), 0)
	}
	timer := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	timer.Stop()
	var result attempt.Result
	if json.Unmarshal(stdout.Bytes(), &result) == nil && result.Name == p.name {
		return result
	}
	result = p.result(attempt.Silent, "", limit)
	result.PID = cmd.Process.Pid
	if x := new(exec.ExitError); errors.As(err, &x) {
		// A filter may end who makes a call that it does not know.
		if status, ok := x.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == unix.SIGSYS {
			result.Outcome, result.Micros = attempt.Blocked, 0
		}
	}
	result.Detail = strings.TrimSpace(fmt.Sprintf("the attempt ended without a result: %v %s", err, clip(stderr.String(), 200)))
	return result
}

// perform makes one attempt in this process.
func perform(o options) error {
	stage, err := readStage(o.stage)
	if err != nil {
		return err
	}
	all := probes(stage)
	i := slices.IndexFunc(all, func(p probe) bool { return p.name == o.probe })
	if i < 0 {
		return fmt.Errorf("there is no attempt %q", o.probe)
	}
	if o.plain {
		patience /= 20
	}
	p := all[i]
	setComm(p.name)
	if err := register(stage, p.name); err != nil {
		return err
	}
	t := &try{stage: stage, name: p.name, plain: o.plain}
	t.start()
	v := p.try(t)
	return json.NewEncoder(os.Stdout).Encode(p.result(v.outcome, v.detail, v.took))
}

// setComm sets the name that the kernel knows this process by, all its threads.
func setComm(name string) {
	tasks, _ := os.ReadDir("/proc/self/task")
	for _, task := range tasks {
		_ = os.WriteFile("/proc/self/task/"+task.Name()+"/comm", []byte(name), 0)
	}
}

// register tells the host which of its processes this attempt is.
func register(stage *attempt.Stage, name string) error {
	if stage.Register == "" {
		return nil
	}
	conn, err := net.Dial("unix", stage.Register)
	if err != nil {
		return fmt.Errorf("register: %w", err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(name + "\n")); err != nil {
		return fmt.Errorf("register: %w", err)
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

// openFiles lists this process's descriptors beside its stdio and what Go's
// runtime has opened for itself.
func openFiles() string {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return ""
	}
	var open []string
	for _, entry := range entries {
		fd, _ := strconv.Atoi(entry.Name())
		target, err := os.Readlink("/proc/self/fd/" + entry.Name())
		ours := strings.HasPrefix(target, "anon_inode:[event") || strings.HasPrefix(target, "/proc/") ||
			strings.HasPrefix(filepath.Base(target), "cpu.") // from which it learns how many threads to have
		if err == nil && fd > 2 && !ours {
			open = append(open, entry.Name()+" "+target)
		}
	}
	return strings.Join(open, ", ")
}

func clip(s string, n int) string { return s[:min(len(s), n)] }
