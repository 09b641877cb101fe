// Command agent runs a command so that everything it sends out is seen, judged
// and recorded, with short-lived AWS credentials and no long-lived secret.
package main

import (
	"os"

	"agentops/runtime"
)

// The first process of every container is this program again.
func init() { runtime.Init() }

func main() {
	os.Exit(run(processEnv()))
}
