package sysmon

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// One thread may wake late, which is none that goroutines run on, and none in the end.
func TestSlow(t *testing.T) {
	busy := runningGoroutines()
	late := lateThreads(t)
	if len(late) != 1 || slices.Contains(busy, late[0]) {
		t.Errorf("threads %s may wake late, want one that is not of %s", late, busy)
	}
	Restore()
	if late := lateThreads(t); len(late) != 0 {
		t.Errorf("threads %s may still wake late", late)
	}
}

// lateThreads may wake later than the first one.
func lateThreads(t *testing.T) (late []string) {
	t.Helper()
	exact, err := os.ReadFile(slackOf("self"))
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads(-1) {
		slack, err := os.ReadFile(slackOf(thread))
		switch {
		case errors.Is(err, fs.ErrNotExist): // it has ended
		case err != nil:
			t.Fatal(err)
		case !bytes.Equal(slack, exact):
			late = append(late, thread)
		}
	}
	return late
}

// runningGoroutines are threads that goroutines run on: more than there were.
func runningGoroutines() (threads []string) {
	var mu sync.Mutex
	var wg, all sync.WaitGroup
	const many = 32
	all.Add(many)
	for range many {
		wg.Go(func() {
			runtime.LockOSThread() // never unlocked: each has one of its own
			mu.Lock()
			threads = append(threads, strconv.Itoa(unix.Gettid()))
			mu.Unlock()
			all.Done()
			all.Wait()
		})
	}
	wg.Wait()
	return threads
}
