package runtime

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// A run wakes as exactly as it would without us, whatever thread it is started by.
func TestWakeExactly(t *testing.T) {
	want, err := readNumber("/proc/self/timerslack_ns")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: no other goroutine is to wake late
		err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1e6, 0, 0, 0)
		if err == nil {
			err = wakeExactly()
		}
		if err == nil {
			var got int
			if got, err = unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); uint64(got) != want {
				t.Errorf("the thread may wake %d ns late, want %d", got, want)
			}
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
