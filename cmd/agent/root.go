package main

import (
	"context"
	"fmt"

	"agentops/audit"

	"github.com/spf13/cobra"
)

// run is the program: it returns the exit code of one command line.
func run(e *env) int {
	root := &cobra.Command{
		Use:   "agent",
		Short: "Run a command whose every byte out is seen, judged and recorded",
		Example: `  agent grant aws --role arn:aws:iam::123456789012:role/AgentRole
  agent run --grant aws -- aws s3 ls
  agent audit last`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.AddCommand(
		newGrantCommand(e),
		newRunCommand(e),
		newAuditCommand(e),
		newPolicyCommand(e),
		newDoctorCommand(e),
		newSelftestCommand(e),
		newVersionCommand(e),
	)
	root.SetArgs(e.args)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	return e.report(root.ExecuteContext(context.Background()))
}

// version is set by the Makefile.
var version = "dev"

func newVersionCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			line := "agent " + version
			if !audit.Recording {
				line += " (" + notRecording + ")"
			}
			_, err := fmt.Fprintln(e.stdout, line)
			return err
		},
	}
}

// notRecording is what a build with tag noaudit says of itself, also at each run.
const notRecording = "noaudit: this build records nothing, for benchmarks only"
