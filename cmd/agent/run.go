package main

import (
	"fmt"

	"agentops/audit"
	"agentops/mitm/policy"
	"agentops/runtime"

	"github.com/spf13/cobra"
)

func newRunCommand(e *env) *cobra.Command {
	var flags runFlags
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARG...]",
		Short: "Run a command with its network seen, judged and recorded",
		Long: `Run a command in a network of its own whose only way out is a proxy on this
host. Every connection is judged by name and recorded; nothing has to be set in
the command for it. The command sees a copy-on-write view of this host without
its secrets, and the current folder.

Settings may be kept in agent.yaml in the workspace; flags add to its lists and
win over the rest. The exit code is the command's; 125 is an error of agent's
own, 126 a command that cannot be executed, 127 one that is not found, 128+n the
end by signal n.`,
		Example: `  agent run -- curl https://example.com
  agent run --strict --allow '*.debian.org' -- apt-get update
  agent run --strict --allow 'GET,HEAD example.com/api/**' -- ./build.sh
  agent run --grant aws -- aws s3 ls
  agent run -it -- bash
  agent run --rootfs ./image -v ./data:/data:ro -- /bin/tool`,
		RunE: func(cmd *cobra.Command, args []string) error {
			go runtime.ExpectMoves() // beside all that comes before there is a process
			spec, err := e.resolve(flags, args)
			if err != nil {
				return err
			}
			if !audit.Recording {
				fmt.Fprintln(e.stderr, "agent: warning:", notRecording)
			}
			code, err := e.execute(cmd.Context(), spec)
			if err != nil {
				return err
			}
			if code != 0 {
				return &exitError{code: code}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // what follows the command is the command's
	f.StringVar(&flags.Name, "name", "", "name of the run, unique among those that go on")
	f.StringArrayVar(&flags.Grants, "grant", nil, "use a stored grant; the first is also the default AWS profile")
	f.BoolVar(&flags.strict, "strict", false, "refuse what no rule allows")
	f.Var(ruleFlag{&flags.Network.Allow, "--allow"}, "allow", "allow `RULE`: HOST, *.SUFFIX, ADDRESS or NETWORK, with [:PORTS] and [/PATH], METHODS before it; or tcp:HOST:PORT, udp:HOST:PORT")
	f.Var(ruleFlag{&flags.Network.Deny, "--deny"}, "deny", "deny `RULE`; deny beats allow")
	f.StringArrayVar(&flags.Network.Resolve, "resolve", nil, "dial `NAME=IP[:PORT]`; NAME may be *.SUFFIX, an address, or * for every other")
	f.StringArrayVar(&flags.Network.Passthrough, "passthrough", nil, "leave the TLS of `HOST[:PORTS]` unopened: what is sent there is not seen")
	f.StringVar(&flags.upstreamCA, "upstream-ca", "", "trust the roots in PEM `FILE` for upstreams as well")
	f.StringVar(&flags.Rootfs, "rootfs", "", "run in the tree at `DIR` instead of the host's (what is written there is discarded)")
	f.StringArrayVarP(&flags.Mounts, "volume", "v", nil, "mount `SRC:DST[:ro]`")
	f.StringArrayVarP(&flags.Env, "env", "e", nil, "set `NAME=VALUE`, or pass NAME on")
	f.StringVar(&flags.Limits.Memory, "memory", "", "limit the run's memory to `SIZE`, such as 512m or 2g; what takes more is killed")
	f.StringVar(&flags.Limits.CPUs, "cpus", "", "limit the run's processor time to that of `N`, such as 0.5")
	f.StringVar(&flags.Limits.PIDs, "pids", "", fmt.Sprintf("limit the run to `N` processes and threads (default: %d)", runtime.DefaultPIDs))
	f.StringVar(&flags.Limits.OpenFiles, "open-files", "", "limit each process to `N` open files")
	f.StringArrayVar(&flags.CapAdd, "cap-add", nil, "give root in the run capability `CAP` beside the usual ones")
	f.StringVarP(&flags.workspace, "workspace", "w", "", "work in `DIR` (default: the current folder)")
	f.BoolVarP(&flags.terminal, "terminal", "t", false, "give the command a terminal")
	f.BoolVarP(&flags.stdin, "interactive", "i", true, "pass stdin on; --interactive=false gives the command an empty one")
	f.BoolVarP(&flags.quiet, "quiet", "q", false, "print no summary at the end")
	return cmd
}

// ruleFlag is a flag whose every use adds a rule.
type ruleFlag struct {
	rules *[]policy.Rule
	name  string
}

// Set implements pflag.Value.
func (f ruleFlag) Set(text string) error {
	rule, err := policy.ParseRule(text)
	if err == nil {
		*f.rules = append(*f.rules, rule.From(f.name))
	}
	return err
}

// Type implements pflag.Value.
func (f ruleFlag) Type() string { return "rule" }

// String implements pflag.Value.
func (f ruleFlag) String() string { return "" }

// summarize prints the one line that a run ends with.
func (e *env) summarize(r *execution, code int) {
	if r.spec.quiet {
		return
	}
	t := r.journal.Totals()
	name := r.spec.id
	if r.spec.name != r.spec.id {
		name = r.spec.name + " (" + r.spec.id + ")"
	}
	fmt.Fprintf(e.stderr, "agent: run %s: exit code %d, %s to %s, %d refused; see agent audit %s\n", name, code,
		plural(t.Requests, "request"), plural(t.Hosts, "host"), t.Refused, r.spec.id)
}

func plural(n uint64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
