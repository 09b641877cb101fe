package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"agentops/credsrv"
	"agentops/credsrv/grant"

	"github.com/spf13/cobra"
)

func newGrantCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "grant",
		Short: "Store what runs may be given",
		Long:  "Store what runs may be given. A grant is a configuration; there is no secret in it.",
		Example: `  agent grant aws --role arn:aws:iam::123456789012:role/AgentRole
  agent grant list
  agent grant revoke aws`,
	}
	cmd.AddCommand(newGrantAWSCommand(e), newGrantListCommand(e), newGrantShowCommand(e), newGrantRevokeCommand(e))
	return cmd
}

func (e *env) grants() grant.Store {
	return grant.Store{Dir: filepath.Join(e.stateDir(), "grants")}
}

// grantFlags are those of agent grant aws, as they were written.
type grantFlags struct {
	grant.AWS
	duration   string
	policyFile string
	noVerify   bool
	asJSON     bool
}

func newGrantAWSCommand(e *env) *cobra.Command {
	var flags grantFlags
	cmd := &cobra.Command{
		Use:   "aws --role ARN",
		Short: "Store an AWS role for runs to assume",
		Long: `Store an AWS role for runs to assume with this host's AWS identity. The role is
assumed once to prove it, with the duration that is asked for; a role that cannot
be assumed is not stored.`,
		Example: `  agent grant aws --role arn:aws:iam::123456789012:role/AgentRole
  agent grant aws --role arn:aws:iam::123456789012:role/Deploy --name deploy \
      --session-duration 1h --external-id ticket-4711 --policy-arn arn:aws:iam::aws:policy/ReadOnlyAccess`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return e.grantAWS(cmd.Context(), flags) },
	}
	f := cmd.Flags()
	f.StringVar(&flags.RoleARN, "role", "", "`ARN` of the role")
	f.StringVar(&flags.Name, "name", "", "name of the grant (default: aws)")
	f.StringVar(&flags.Region, "region", "", "AWS region of the runs (default: the partition's first)")
	f.StringVar(&flags.duration, "session-duration", "15m", "how long each session lasts, 15m to 12h; they are renewed in time")
	f.StringVar(&flags.ExternalID, "external-id", "", "external id that the role's trust policy asks for")
	f.StringVar(&flags.Profile, "aws-profile", "", "this host's AWS profile to assume the role with")
	f.StringVar(&flags.policyFile, "session-policy", "", "`FILE` with an IAM policy that narrows the sessions")
	f.StringArrayVar(&flags.PolicyARNs, "policy-arn", nil, "managed policy that narrows the sessions; may be repeated")
	f.BoolVar(&flags.noVerify, "no-verify", false, "store the grant without a trial")
	f.BoolVar(&flags.asJSON, "json", false, "print the grant as JSON")
	return cmd
}

// resolveGrant makes a grant of the flags and finds all that is wrong with them.
func (e *env) resolveGrant(flags grantFlags) (grant.AWS, error) {
	a := flags.AWS
	if a.RoleARN == "" {
		return a, withHint(errors.New("no role was given"), "agent grant aws --role arn:aws:iam::123456789012:role/NAME")
	}
	duration, err := time.ParseDuration(flags.duration)
	if err != nil || duration <= 0 {
		return a, withHint(fmt.Errorf("session duration %q is not from 15m to 12h", flags.duration), "for example --session-duration 1h")
	}
	a.SessionDuration = duration
	if flags.policyFile != "" {
		content, err := os.ReadFile(e.absolute(e.dir, flags.policyFile))
		if err != nil {
			return a, fmt.Errorf("read --session-policy: %w", err)
		}
		a.SessionPolicy = strings.TrimSpace(string(content))
	}
	a, err = grant.New(a)
	return a, grantHint(err)
}

// grantHint carries the hint of a grant's error to the user.
func grantHint(err error) error {
	if g, ok := errors.AsType[*grant.Error](err); ok {
		return withHint(err, "%s", g.Hint)
	}
	if assume, ok := errors.AsType[*credsrv.AssumeError](err); ok {
		return withHint(err, "%s", assume.Hint())
	}
	return err
}

func (e *env) grantAWS(ctx context.Context, flags grantFlags) error {
	if e.uid != 0 {
		return withHint(errors.New("agent grant aws needs root: grants are root's"), "sudo agent grant aws ...")
	}
	a, err := e.resolveGrant(flags)
	if err != nil {
		return err
	}
	if !flags.noVerify {
		proof, err := credsrv.Prove(ctx, a)
		if err != nil {
			return grantHint(err)
		}
		a.Verified = &grant.Verified{Caller: proof.Caller, AssumedRole: proof.AssumedRole, Chained: proof.Chained, At: time.Now().UTC().Truncate(time.Second)}
		fmt.Fprintf(e.stderr, "agent: %s assumed %s until %s\n", proof.Caller, proof.AssumedRole, proof.Expiration.UTC().Format(time.RFC3339))
		if proof.Chained {
			fmt.Fprintf(e.stderr, "agent: warning: this host's identity is itself a role, which caps sessions at %s (role chaining)\n", short(time.Hour))
		}
	}
	if err := e.grants().Save(a); err != nil {
		return stateError(err)
	}
	if flags.asJSON {
		return e.printJSON(a)
	}
	fmt.Fprintf(e.stdout, "grant %s: %s, sessions of %s in %s; use it with agent run --grant %s\n", a.Name, a.RoleARN, short(a.SessionDuration), a.Region, a.Name)
	return nil
}

func newGrantListCommand(e *env) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the stored grants",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			grants, err := e.grants().List()
			if err != nil {
				return err
			}
			if asJSON {
				return e.printJSON(grants)
			}
			table := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(table, "NAME\tROLE\tREGION\tSESSION")
			for _, a := range grants {
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", a.Name, a.RoleARN, a.Region, short(a.SessionDuration))
			}
			return table.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	return cmd
}

func newGrantShowCommand(e *env) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show NAME",
		Short: "Show a stored grant",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			a, err := e.loadGrant(args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return e.printJSON(a)
			}
			e.printGrant(a)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	return cmd
}

func newGrantRevokeCommand(e *env) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "revoke NAME",
		Short: "Forget a stored grant",
		Long:  "Forget a stored grant. Runs that go on with it keep renewing their sessions until they end.",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			a, err := e.loadGrant(args[0])
			if err != nil {
				return err
			}
			if err := e.grants().Remove(a.Name); err != nil {
				return stateError(err)
			}
			if asJSON {
				return e.printJSON(a)
			}
			fmt.Fprintf(e.stdout, "grant %s is revoked\n", a.Name)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the grant that was")
	return cmd
}

// loadGrant reads a grant, and says of an unknown one what there is or how to
// make it.
func (e *env) loadGrant(name string) (grant.AWS, error) {
	a, err := e.grants().Load(name)
	if !errors.Is(err, grant.ErrUnknown) {
		return a, err
	}
	grants, listErr := e.grants().List()
	if listErr != nil || len(grants) == 0 {
		return a, withHint(err, "make it with agent grant aws --role ARN --name %s", name)
	}
	names := make([]string, len(grants))
	for i, g := range grants {
		names[i] = g.Name
	}
	return a, withHint(err, "there are: %s; make another with agent grant aws --role ARN --name %s", strings.Join(names, ", "), name)
}

func (e *env) printGrant(a grant.AWS) {
	table := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(table, "%s\t%s\n", name, value)
		}
	}
	row("name", a.Name)
	row("role", a.RoleARN)
	row("region", a.Region)
	row("session duration", short(a.SessionDuration))
	row("external id", a.ExternalID)
	row("AWS profile", a.Profile)
	row("session policy", a.SessionPolicy)
	row("policies", strings.Join(a.PolicyARNs, " "))
	row("hosts", strings.Join(a.Hosts(), " "))
	if a.Verified != nil {
		row("verified", fmt.Sprintf("%s as %s", a.Verified.At.Format(time.RFC3339), a.Verified.Caller))
	} else {
		row("verified", "never")
	}
	_ = table.Flush() // stdout has no reader any more
}

func (e *env) printJSON(v any) error {
	encoder := json.NewEncoder(e.stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}

// short writes a duration without its zero parts: 15m, 1h, 1h30m.
func short(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
