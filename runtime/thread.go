package runtime

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// thread is an operating system thread with a mount namespace of its own, in
// which a container's filesystem is put together and from which the container
// is driven. What is mounted there nobody else sees, and it goes away with the
// thread and the container's processes: nothing of it can be left behind.
type thread struct {
	calls chan func()
}

// newThread starts a thread whose mounts are a private copy of the host's.
func newThread() (*thread, error) {
	// The cgroups library keeps the first handle of /sys/fs/cgroup that it opens;
	// opened from a thread of ours, it would be lost with that thread.
	if handle, err := cgroups.OpenFile("/sys/fs/cgroup", "", unix.O_PATH); err == nil {
		handle.Close()
	}
	t := &thread{calls: make(chan func())}
	ready := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := isolate()
		ready <- err
		if err != nil {
			return
		}
		for call := range t.calls {
			call()
		}
	}()
	if err := <-ready; err != nil {
		return nil, err
	}
	return t, nil
}

// isolate gives the current thread its own mount namespace.
func isolate() error {
	if unix.Gettid() == os.Getpid() {
		return errors.New("the first thread was to drive a container: runtime.Init was not called")
	}
	if err := wakeExactly(); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	// The process's current folder may be gone, or be covered by what is
	// mounted next.
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("change to /: %w", err)
	}
	return nil
}

// wakeExactly has the current thread, and so the run, wake as exactly as the first one:
// sysmon may have started it.
func wakeExactly() error {
	slack, err := readNumber("/proc/self/timerslack_ns")
	if err != nil {
		return fmt.Errorf("read how late a thread may wake: %w", err)
	}
	return os.NewSyscallError("prctl PR_SET_TIMERSLACK", unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(slack), 0, 0, 0))
}

// do calls f on the thread.
func (t *thread) do(f func() error) error {
	done := make(chan error, 1)
	t.calls <- func() { done <- f() }
	return <-done
}

// end lets the thread go. It must not be used afterwards.
func (t *thread) end() { close(t.calls) }
