package main

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"agentops/mitm"
	"agentops/mitm/policy"

	"github.com/spf13/cobra"
)

func newPolicyCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Ask what runs may reach, without one",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return withHint(fmt.Errorf("there is no command agent policy %s", args[0]), "agent policy check or suggest")
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newPolicyCheckCommand(e), newPolicySuggestCommand(e))
	return cmd
}

func newPolicyCheckCommand(e *env) *cobra.Command {
	var file, method string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check [--policy FILE] URL|HOST:PORT",
		Short: "Say whether a run may reach something, and which rule decides",
		Long: `Say whether a run in the current folder may reach something, and which rule of
which file decides: by its agent.yaml and the host's ` + hostPolicyFile + `,
or by FILE alone, in the form of the one or, when it is so named, of the other.
Nothing is looked up: that a name leads to an address which is not public is seen
only in a run. Beside a URL there may be HOST:PORT, for whatever is spoken there,
tcp:HOST:PORT, for what is no HTTP, and udp:HOST:PORT.

The exit code is 0 for what is allowed, 1 for what is refused.`,
		Example: `  agent policy check https://example.com/api/items --method POST
  agent policy check --policy agent.yaml tcp:db.example.com:5432 --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			target, err := parseTarget(args[0], method)
			if err != nil {
				return err
			}
			p, pins, err := e.effectivePolicy(file)
			if err != nil {
				return err
			}
			return e.printVerdict(judge(args[0], target, p, pins), asJSON)
		},
	}
	f := cmd.Flags()
	f.StringVar(&file, "policy", "", "judge by `FILE` alone")
	f.StringVar(&method, "method", "", "`METHOD` of the request (default: GET for a URL)")
	f.BoolVar(&asJSON, "json", false, "print a JSON object")
	return cmd
}

// parseTarget reads what agent policy check is asked of.
func parseTarget(text, method string) (t policy.Target, err error) {
	rest, port := text, ""
	switch {
	case strings.HasPrefix(text, "http://"):
		t.Protocol, port, rest = policy.HTTP, "80", strings.TrimPrefix(text, "http://")
	case strings.HasPrefix(text, "https://"):
		t.Protocol, port, rest = policy.HTTP, "443", strings.TrimPrefix(text, "https://")
	case strings.HasPrefix(text, "tcp:"):
		t.Protocol, rest = policy.NotHTTP, strings.TrimPrefix(text, "tcp:")
	case strings.HasPrefix(text, "udp:"):
		t.Protocol, rest = policy.UDP, strings.TrimPrefix(text, "udp:")
	case method != "":
		t.Protocol = policy.HTTP
	default:
		t.Protocol = policy.TCP
	}
	if t.Protocol != policy.HTTP && method != "" {
		return t, fmt.Errorf("%s: a --method is of HTTP", text)
	}
	t.Method = method
	address := rest
	if port != "" { // a URL
		if _, err := url.Parse(text); err != nil {
			return t, err
		}
		if t.Method == "" {
			t.Method = "GET"
		}
		end := strings.IndexAny(rest, "/?#")
		if end < 0 {
			end = len(rest)
		}
		address, t.Path = rest[:end], rest[end:]
		if i := strings.IndexAny(t.Path, "?#"); i >= 0 { // clients do not send the fragment
			t.Path = t.Path[:i]
		}
		if t.Path == "" {
			t.Path = "/"
		}
		address = address[strings.LastIndex(address, "@")+1:]
		if _, _, err := net.SplitHostPort(address); err != nil {
			address = net.JoinHostPort(strings.Trim(address, "[]"), port)
		}
	}
	host, digits, err := net.SplitHostPort(address)
	if err != nil {
		return t, withHint(fmt.Errorf("%q is neither a URL nor HOST:PORT", text), "https://example.com/path, example.com:443, tcp:example.com:22")
	}
	if t.Host, err = policy.Host(host); err != nil {
		return t, err
	}
	number, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || number == 0 {
		return t, fmt.Errorf("%q: %q is no port", text, digits)
	}
	t.Port = uint16(number)
	return t, nil
}

// effectivePolicy is that of runs in the current folder; with a file, what that
// alone says.
func (e *env) effectivePolicy(file string) (*policy.Policy, []mitm.Pin, error) {
	var s settings
	var host *hostPolicy
	var err error
	if file == "" {
		if s, err = readSettings(e.dir); err == nil {
			host, err = e.readHostPolicy()
		}
	} else {
		s, host, err = readPolicy(e.absolute(e.dir, file))
	}
	if err != nil {
		return nil, nil, err
	}
	spec := &runSpec{}
	if err := spec.resolveGrants(e, s.Grants, host); err != nil {
		return nil, nil, err
	}
	return &spec.policy, spec.pins, errors.Join(spec.resolveNetwork(s.Network, host), err)
}

// readPolicy reads a file in the form of agent.yaml, or of the host's policy when
// it has that name: then as a run has it that asks for all that the file allows.
func readPolicy(path string) (s settings, host *hostPolicy, err error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return s, nil, fmt.Errorf("read the policy: %w", err)
	}
	if filepath.Base(path) != filepath.Base(hostPolicyFile) {
		s, err = parseSettings(path, content)
		return s, nil, err
	}
	if host, err = parseHostPolicy(path, content); err == nil {
		s.Network.Allow = host.Network.Allow
	}
	return s, host, err
}

// verdict is what agent policy check says.
type verdict struct {
	Target   string          `json:"target"`
	Allowed  bool            `json:"allowed"`
	Host     string          `json:"host"`
	Port     uint16          `json:"port"`
	Protocol policy.Protocol `json:"protocol"`
	Method   string          `json:"method,omitempty"`
	Path     string          `json:"path,omitempty"`
	Reason   policy.Reason   `json:"reason,omitempty"`
	Rule     string          `json:"rule,omitempty"`
	File     string          `json:"file,omitempty"` // where the rule stands
	Detail   string          `json:"detail,omitempty"`
	Hint     string          `json:"hint,omitempty"`
}

// judge decides as the proxy of a run does.
func judge(text string, t policy.Target, p *policy.Policy, pins []mitm.Pin) verdict {
	decided := p.Decide(t)
	v := verdict{
		Target: text, Allowed: decided.Allowed, Host: t.Host, Port: t.Port, Protocol: t.Protocol, Method: t.Method, Path: t.Path,
		Reason: decided.Reason, Rule: decided.Rule, File: decided.Source,
	}
	if !v.Allowed {
		v.Detail, v.Hint = p.Explain(t, decided)
		return v
	}
	if guard, ok := errors.AsType[*mitm.GuardError](mitm.NewDialer(pins, p).Check(t.Protocol, t.Host, t.Port)); ok {
		v.Allowed, v.Reason, v.Rule, v.File = false, guard.Reason(), guard.Verdict.Rule, guard.Verdict.Source
		v.Detail, v.Hint = guard.Error(), guard.Hint(t.Protocol, t.Host, t.Port)
	}
	return v
}

func (e *env) printVerdict(v verdict, asJSON bool) error {
	var err error
	switch {
	case asJSON:
		err = e.printJSON(v)
	case v.Allowed && v.Rule == "":
		_, err = fmt.Fprintf(e.stdout, "allowed: %s: no rule is against it\n", printable(v.Target))
	case v.Allowed:
		_, err = fmt.Fprintf(e.stdout, "allowed: %s: by the rule %q of %s\n", printable(v.Target), v.Rule, printable(v.File))
	default:
		_, err = fmt.Fprintf(e.stdout, "refused: %s: %s: %s\n", printable(v.Target), v.Reason, printable(v.Detail))
		if v.Hint != "" {
			fmt.Fprintf(e.stdout, "to allow it: %s\n", printable(v.Hint))
		}
	}
	if err == nil && !v.Allowed {
		err = &exitError{code: 1}
	}
	return err
}
