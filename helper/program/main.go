// Command helper is the one program of ours inside a run. Its first argument
// is its role: init, the run's PID 1, or credential, which AWS SDKs start.
//
// It is static, because a run's files may hold no libc, and imports little,
// because it starts with every run and with every refresh.
package main

import (
	"fmt"
	"io"
	"os"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr, os.Getenv))
}

// exitOurs is the code of a failure of the helper itself.
const exitOurs = 125

// run is the program: it returns the exit code of one command line.
func run(args []string, stdout, stderr io.Writer, getenv func(string) string) int {
	role := ""
	if len(args) > 0 {
		role = args[0]
	}
	switch role {
	case "init":
		return supervise(args[1:], stderr)
	case "credential":
		return credential(args[1:], stdout, stderr, getenv)
	}
	fmt.Fprintf(stderr, "agent: error: the helper has no role %q\n", role)
	return exitOurs
}
