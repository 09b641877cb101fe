package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
)

// The lifeline is a stream socket to the agent that drives the run. From the
// agent comes one byte for each signal to pass on; to it go pairs of a word
// below and a signal. When it ends, the agent is gone and so is the run.
//
// It is a socket and not a pipe because a pipe's other end can be opened by
// whoever can read /proc/1/fd, which would keep the run alive.
const (
	wordStopped = 'S' // the command was stopped by a signal
	wordKilled  = 'K' // the command died of a signal

	wordFiltered = 'F' // the filter is on; its descriptor is with the word, which is the first
)

// supervise is PID 1 of a run:
//
//	init [--terminal] FD -- COMMAND [ARG...]
//
// FD is the lifeline. With --terminal the command gets init's own stdio, which
// is a terminal, and its foreground; else the three descriptors after FD. Init
// runs the command, reaps what else dies, and returns the command's exit code,
// at which the kernel ends all that is left of the PID namespace.
//
// Nothing in the run can keep it from that. It cannot be stopped or killed
// from inside, which the kernel sees to for PID 1, and it is not dumpable, so
// that root without CAP_SYS_PTRACE can neither trace it nor reach its
// descriptors. What else can be done to it (limits, signals that Go dies of) ends
// the run. A parent-death signal would be of no use: the kernel (6.18) does not
// deliver it to PID 1 of a namespace, even if PID 1 asks for it itself.
func supervise(args []string, stderr io.Writer) int {
	terminal := len(args) > 0 && args[0] == "--terminal"
	if terminal {
		args = args[1:]
	}
	if len(args) < 3 || args[1] != "--" {
		fmt.Fprintln(stderr, "agent: error: usage: init [--terminal] FD -- COMMAND [ARG...]")
		return exitOurs
	}
	lifeline, err := strconv.Atoi(args[0])
	if err != nil || lifeline < 3 {
		fmt.Fprintf(stderr, "agent: error: %q is not a lifeline\n", args[0])
		return exitOurs
	}
	stdio := []int{0, 1, 2}
	if !terminal {
		stdio = []int{lifeline + 1, lifeline + 2, lifeline + 3}
		stderr = os.NewFile(uintptr(stdio[2]), "stderr")
	}
	err = guard(lifeline, stdio)
	if err == nil {
		err = installFilter(lifeline)
	}
	if err != nil {
		fmt.Fprintf(stderr, "agent: error: prepare the run's init: %v\n", err)
		return exitOurs
	}
	received := make(chan os.Signal, 64)
	signal.Notify(received, catchable()...)

	pid, failed := start(args[2:], stdio, terminal)
	if failed != nil {
		fmt.Fprintf(stderr, "agent: error: %v\n", failed)
		return failed.code
	}
	if !terminal {
		// The command alone holds its streams, so that their other ends see it
		// close them.
		for _, fd := range stdio {
			syscall.Close(fd)
		}
	}
	go follow(lifeline, pid)
	go func() {
		for s := range received {
			pass(pid, s.(syscall.Signal))
		}
	}()
	return reap(lifeline, pid)
}

// guard ties init's life to the agent's and shuts the command out of init.
func guard(lifeline int, stdio []int) error {
	syscall.CloseOnExec(lifeline)
	for _, fd := range stdio {
		if fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
	const prSetDumpable = 4
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prSetDumpable, 0, 0); errno != 0 {
		return fmt.Errorf("set not dumpable: %w", errno)
	}
	return nil
}

// catchable lists the signals to pass on that others than the agent, whose come
// by the lifeline, send to PID 1: those that a person or an engine sends. All
// sixty would take longer to set up than everything else. Those that the agent
// was started to ignore (nohup) the command inherits.
func catchable() []os.Signal {
	var list []os.Signal
	for _, s := range []os.Signal{
		syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2,
		syscall.SIGALRM, syscall.SIGABRT, syscall.SIGCONT, syscall.SIGTSTP, syscall.SIGWINCH,
	} {
		if !signal.Ignored(s) {
			list = append(list, s)
		}
	}
	return list
}

// start runs the command in a process group of its own, which has the
// terminal's foreground if there is one.
func start(command []string, stdio []int, terminal bool) (int, *startError) {
	file, failed := lookup(command[0], os.Getenv("PATH"))
	if failed != nil {
		return 0, failed
	}
	attr := &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{uintptr(stdio[0]), uintptr(stdio[1]), uintptr(stdio[2])},
		Sys:   &syscall.SysProcAttr{Setpgid: true, Foreground: terminal, Ctty: 0},
	}
	pid, err := syscall.ForkExec(file, command, attr)
	if err == syscall.ENOEXEC {
		// A script without #! is the shell's, as execvp has it.
		script := append([]string{"sh", file}, command[1:]...)
		pid, err = syscall.ForkExec("/bin/sh", script, attr)
	}
	if err != nil {
		return 0, failure(file, err.(syscall.Errno))
	}
	return pid, nil
}

// follow passes the agent's signals on, until the agent is gone.
func follow(lifeline, pid int) {
	// A thread of its own: no load in the run and none of Go's pollers is
	// between the end of the lifeline and ours.
	runtime.LockOSThread()
	signals := make([]byte, 64)
	for {
		n, err := syscall.Read(lifeline, signals)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			os.Exit(128 + int(syscall.SIGKILL))
		}
		for _, s := range signals[:n] {
			pass(pid, syscall.Signal(s))
		}
	}
}

// pass gives the command a signal. Those that a terminal sends go to its whole
// process group, as they would from a terminal.
func pass(pid int, s syscall.Signal) {
	switch s {
	case syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGTSTP, syscall.SIGCONT:
		_ = syscall.Kill(-pid, s) // it may have ended
	default:
		_ = syscall.Kill(pid, s) // likewise
	}
}

// reap waits for every child, adopted ones included, until the command is done.
func reap(lifeline, command int) int {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WUNTRACED, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return exitOurs // no child is left, not even the command
		}
		if pid != command {
			continue
		}
		switch {
		case status.Stopped():
			_, _ = syscall.Write(lifeline, []byte{wordStopped, byte(status.StopSignal())})
		case status.Signaled():
			_, _ = syscall.Write(lifeline, []byte{wordKilled, byte(status.Signal())})
			return 128 + int(status.Signal())
		case status.Exited():
			return status.ExitStatus()
		}
	}
}
