// Command agent runs a command so that everything it sends out is seen, judged
// and recorded, with short-lived AWS credentials and no long-lived secret.
package main

import (
	"os"

	"agentops/runtime"
)

// The first process of every container is this program again.
func init() { runtime.Init() }

// main leaves the program to another goroutine: the main one is tied to the first
// thread, and whatever such a one waits for takes two hand-overs between threads.
func main() {
	code := make(chan int)
	go func() { code <- run(processEnv()) }()
	os.Exit(<-code)
}
