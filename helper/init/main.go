// Command init is the run's PID 1: it starts the command and outlives it by
// nothing.
//
// It is static, because a run's files may hold no libc, and imports little,
// because it starts with every run.
package main

import "os"

func main() {
	os.Exit(supervise(os.Args[1:], os.Stderr))
}

// exitOurs is the code of a failure of init itself.
const exitOurs = 125
