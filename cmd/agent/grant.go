package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
		Long: `Store what runs may be given: an AWS role, or a header.

An AWS grant is configuration without a secret: which role a run works with, and
how. The role is assumed for the run, with this host's AWS identity, which never
enters the run. An HTTP grant is a header with a secret value, which the proxy puts
on the run's requests to one host; the run never has it.`,
		Example: `  agent grant aws --role arn:aws:iam::123456789012:role/AgentRole
  agent grant http github --host api.github.com --header Authorization --value-from env:GITHUB_AUTHORIZATION
  agent grant list
  agent grant show aws --json
  agent grant revoke aws`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return withHint(fmt.Errorf("there is no command agent grant %s", args[0]), "agent grant aws, http, list, show or revoke")
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newGrantAWSCommand(e), newGrantHTTPCommand(e), newGrantListCommand(e), newGrantShowCommand(e), newGrantRevokeCommand(e))
	return cmd
}

func (e *env) grants() grant.Store {
	return grant.Store{Dir: filepath.Join(e.stateDir(), "grants")}
}

// needRootFor is an error for who is not root.
func (e *env) needRootFor(command string) error {
	if e.uid == 0 {
		return nil
	}
	return withHint(fmt.Errorf("%s needs root: grants are root's", command), "sudo %s ...", command)
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
be assumed is not stored. A grant of the same name is replaced, unless that fails.

Where this host's identity is itself a role (EC2, SSO, most CI), AWS caps sessions
at 1 h. A session policy and managed policies can only narrow what the role may do.`,
		Example: `  agent grant aws --role arn:aws:iam::123456789012:role/AgentRole
  agent grant aws --role arn:aws:iam::123456789012:role/Deploy --name deploy \
      --session-duration 1h --external-id ticket-4711 --policy-arn arn:aws:iam::aws:policy/ReadOnlyAccess
  agent grant aws --role arn:aws:iam::123456789012:role/AgentRole --name narrow --session-policy one-bucket.json
  agent grant aws --role arn:aws-cn:iam::123456789012:role/AgentRole --name china --aws-profile china --no-verify`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := e.needRootFor("agent grant aws"); err != nil {
				return err
			}
			if err := noEmptyFlags(cmd); err != nil {
				return err
			}
			return e.grantAWS(cmd.Context(), flags)
		},
	}
	f := cmd.Flags()
	f.StringVar(&flags.RoleARN, "role", "", "`ARN` of the role")
	f.StringVar(&flags.Name, "name", "", "`NAME` of the grant (default: aws)")
	f.StringVar(&flags.Region, "region", "", "AWS `REGION` of the runs (default: by the role's partition, us-east-1)")
	f.StringVar(&flags.duration, "session-duration", "15m", "how long each session lasts, 15m to 12h (`D` as in 1h30m); they are renewed in time")
	f.StringVar(&flags.ExternalID, "external-id", "", "external `ID` that the role's trust policy asks for")
	f.StringVar(&flags.Profile, "aws-profile", "", "this host's AWS `PROFILE` to assume the role with")
	f.StringVar(&flags.policyFile, "session-policy", "", "`FILE` with an IAM policy that narrows the sessions")
	f.StringArrayVar(&flags.PolicyARNs, "policy-arn", nil, "`ARN` of a managed policy that narrows the sessions; may be repeated")
	f.BoolVar(&flags.noVerify, "no-verify", false, "store the grant without a trial")
	f.BoolVar(&flags.asJSON, "json", false, "print the grant as JSON")
	return cmd
}

// noEmptyFlags refuses flags that were given without a value, by a variable that
// was not set perhaps: an empty external id or session policy would be none.
func noEmptyFlags(cmd *cobra.Command) error {
	for _, name := range []string{"name", "region", "external-id", "aws-profile", "session-policy"} {
		if f := cmd.Flags().Lookup(name); f.Changed && f.Value.String() == "" {
			return withHint(fmt.Errorf("--%s is empty", name), "give it a value, or leave it out")
		}
	}
	return nil
}

// resolveGrant makes a grant of the flags and finds all that is wrong with them.
func (e *env) resolveGrant(flags grantFlags) (a grant.AWS, err error) {
	a = flags.AWS
	if a.RoleARN == "" {
		return a, withHint(errors.New("no role was given"), "agent grant aws --role arn:aws:iam::123456789012:role/NAME")
	}
	if a.SessionDuration, err = grant.ParseDuration(flags.duration); err != nil {
		return a, grantHint(err)
	}
	if flags.policyFile != "" {
		if a.SessionPolicy, err = readSessionPolicy(e.absolute(e.dir, flags.policyFile)); err != nil {
			return a, withHint(fmt.Errorf("read --session-policy: %w", err), "name a file with an IAM policy in JSON")
		}
	}
	a, err = grant.New(a)
	return a, grantHint(err)
}

const maxPolicyFile = 64 << 10 // bytes; STS takes 2048 characters, white space aside

func readSessionPolicy(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxPolicyFile+1))
	switch {
	case err != nil:
		return "", err
	case len(content) > maxPolicyFile:
		return "", fmt.Errorf("%s is longer than any policy", path)
	case len(content) == 0:
		return "", fmt.Errorf("%s is empty", path)
	}
	return string(content), nil
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

const proveTimeout = time.Minute // of two calls, each with the SDK's attempts

func (e *env) grantAWS(ctx context.Context, flags grantFlags) error {
	a, err := e.resolveGrant(flags)
	if err != nil {
		return err
	}
	if flags.noVerify {
		e.warnUnproved(a)
	} else if a.Verified, err = e.prove(ctx, a); err != nil {
		return err
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

// prove assumes a grant's role once and says what came of it.
func (e *env) prove(ctx context.Context, a grant.AWS) (*grant.Verified, error) {
	ctx, cancel := context.WithTimeout(ctx, proveTimeout)
	defer cancel()
	began := time.Now()
	proof, err := credsrv.Prove(ctx, a)
	if err != nil {
		return nil, grantHint(err)
	}
	fmt.Fprintf(e.stderr, "agent: %s assumed %s until %s\n", printable(proof.Caller), printable(proof.AssumedRole), proof.Expiration.UTC().Format(time.RFC3339))
	got := proof.Expiration.Sub(began).Round(time.Minute)
	switch {
	case proof.Chained:
		e.warn("this host's identity is itself a role, which caps sessions at %s (role chaining)", short(grant.ChainedDuration))
	case got < a.SessionDuration-time.Minute:
		e.warn("the session lasts %s, not the %s asked for", short(got), short(a.SessionDuration))
	}
	return &grant.Verified{Caller: proof.Caller, AssumedRole: proof.AssumedRole, Chained: proof.Chained, At: time.Now()}, nil
}

func (e *env) warnUnproved(a grant.AWS) {
	if a.SessionDuration > grant.ChainedDuration {
		e.warn("nothing was tried: where this host's identity is itself a role, sessions are capped at %s, and %s is refused", short(grant.ChainedDuration), short(a.SessionDuration))
	}
}

func (e *env) warn(format string, args ...any) {
	fmt.Fprintf(e.stderr, "agent: warning: %s\n", fmt.Sprintf(format, args...))
}

func newGrantListCommand(e *env) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the stored grants",
		Example: `  agent grant list
  agent grant list --json | jq -r '.[].name'`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := e.needRootFor("agent grant list"); err != nil {
				return err
			}
			// Those that can be read are shown, whatever is wrong with others.
			grants, err := e.grants().List()
			if asJSON {
				return errors.Join(e.printJSON(append([]grant.Grant{}, grants...)), grantHint(err))
			}
			return errors.Join(e.printGrants(grants), grantHint(err))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	return cmd
}

func newGrantShowCommand(e *env) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "show NAME",
		Short:   "Show a stored grant",
		Example: `  agent grant show aws`,
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := e.needRootFor("agent grant show"); err != nil {
				return err
			}
			g, err := e.loadGrant(args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return e.printJSON(g)
			}
			e.printGrant(g)
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
		Long: `Forget a stored grant. Runs that go on keep what they have until they end, and renew
their sessions; sessions that AWS has given last until they expire.`,
		Example: `  agent grant revoke aws`,
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := e.needRootFor("agent grant revoke"); err != nil {
				return err
			}
			name := args[0]
			err := e.grants().Remove(name) // also one that cannot be read
			if errors.Is(err, grant.ErrUnknown) {
				return e.hintGrants(err)
			}
			if err != nil {
				return stateError(err)
			}
			if asJSON {
				return e.printJSON(map[string]string{"revoked": name})
			}
			fmt.Fprintf(e.stdout, "grant %s is revoked\n", name)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object: revoked")
	return cmd
}

// loadGrant reads a grant, and says of an unknown one what there is and how to
// make it.
func (e *env) loadGrant(name string) (grant.Grant, error) {
	g, err := e.grants().Load(name)
	if errors.Is(err, grant.ErrUnknown) {
		return nil, e.hintGrants(err)
	}
	return g, grantHint(err)
}

// hintGrants adds what grants there are to the error that one is unknown.
func (e *env) hintGrants(err error) error {
	const how = "make one with agent grant aws --role ARN --name NAME, or agent grant http NAME"
	grants, _ := e.grants().List() // those that can be read
	if len(grants) == 0 {
		return withHint(err, "there are no grants yet; %s", how)
	}
	names := make([]string, len(grants))
	for i, g := range grants {
		names[i] = g.GrantName()
	}
	return withHint(err, "there are: %s; %s", strings.Join(names, ", "), how)
}

func (e *env) printGrants(grants []grant.Grant) error {
	table := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NAME\tKIND\tGIVES\tREGION\tSESSION\tVERIFIED")
	for _, g := range grants {
		switch g := g.(type) {
		case grant.AWS:
			verified := "never"
			if g.Verified != nil {
				verified = g.Verified.At.UTC().Format(time.RFC3339)
			}
			fmt.Fprintf(table, "%s\taws\t%s\t%s\t%s\t%s\n", g.Name, g.RoleARN, g.Region, short(g.SessionDuration), verified)
		case grant.HTTP:
			fmt.Fprintf(table, "%s\thttp\t%s for %s\t-\t-\t-\n", g.Name, g.Header, g.Address())
		}
	}
	return table.Flush()
}

func (e *env) printGrant(g grant.Grant) {
	table := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(table, "%s\t%s\n", name, value)
		}
	}
	row("name", g.GrantName())
	switch g := g.(type) {
	case grant.AWS:
		rowsAWS(row, g)
	case grant.HTTP:
		row("kind", "http")
		row("host", g.Address())
		row("header", g.Header)
		row("made", g.Made.UTC().Format(time.RFC3339))
	}
	_ = table.Flush() // stdout has no reader any more
}

func rowsAWS(row func(name, value string), a grant.AWS) {
	row("kind", "aws")
	row("role", a.RoleARN)
	row("region", a.Region)
	row("session duration", short(a.SessionDuration))
	row("external id", a.ExternalID)
	row("AWS profile", printable(a.Profile))
	row("session policy", printable(a.SessionPolicy))
	row("policies", strings.Join(a.PolicyARNs, " "))
	row("hosts", strings.Join(a.Hosts(), " "))
	if v := a.Verified; v != nil {
		row("verified", v.At.UTC().Format(time.RFC3339))
		row("as", printable(v.Caller))
		row("session", printable(v.AssumedRole))
		if v.Chained {
			row("role chaining", "sessions are capped at "+short(grant.ChainedDuration))
		}
	} else {
		row("verified", "never")
	}
}

func (e *env) printJSON(v any) error {
	encoder := json.NewEncoder(e.stdout)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
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
