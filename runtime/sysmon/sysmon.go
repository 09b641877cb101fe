// Package sysmon slows sysmon, the thread by which Go's runtime watches the others, from
// the beginning of a program. It wakes every 70 µs while some of them wait in the kernel,
// as most do in a start; where entering the kernel is dear, that is a tenth of a start's
// time.
//
// It imports nothing but os, and so is initialized as soon as that is, long before main.
package sysmon

import "os"

// slack is how late sysmon may wake, in nanoseconds, and with it the threads that it
// starts: much less than the ten milliseconds after which it does most of its work.
const slack = "4000000"

// To be slow is a favour: where it is not granted, nothing is lost.
func init() {
	// The kernel names threads in the order of their start: the first one, and then
	// sysmon, which the runtime starts before any other.
	if threads := threads(2); len(threads) == 2 {
		_ = os.WriteFile(slackOf(threads[1]), []byte(slack), 0)
	}
}

// Restore has all threads wake as exactly as the first one, which stays as it was.
func Restore() {
	exact, err := os.ReadFile(slackOf("self"))
	if err != nil {
		return
	}
	for _, thread := range threads(-1) {
		_ = os.WriteFile(slackOf(thread), exact, 0) // it may have ended
	}
}

// threads are the numbers of the first n threads of this process; negative: of all.
func threads(n int) []string {
	dir, err := os.Open("/proc/self/task")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(n) // none, where there is an error
	return names
}

// slackOf is the file by which the kernel tells, and takes, how late a thread may wake.
func slackOf(thread string) string { return "/proc/" + thread + "/timerslack_ns" }
