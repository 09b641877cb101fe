package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"

	"agentops/credsrv/grant"
	"agentops/mitm"
	"agentops/mitm/policy"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// headerFlags are those of agent grant http, as they were written.
type headerFlags struct {
	host   string
	header string
	from   string
	asJSON bool
}

func newGrantHTTPCommand(e *env) *cobra.Command {
	var flags headerFlags
	cmd := &cobra.Command{
		Use:   "http NAME --host HOST --header HEADER --value-from SOURCE",
		Short: "Store a secret header for runs' requests to one host",
		Long: `Store a header with a secret value. The proxy puts it on each request of a run
with this grant to exactly this host over TLS, in the place of the run's own; the
run never has it. The value is the header's whole value, and is stored encrypted.
A grant of the same name is replaced.`,
		Example: `  agent grant http github --host api.github.com --header Authorization --value-from env:GITHUB_AUTHORIZATION
  printf 'Bearer %s' "$TOKEN" | agent grant http api --host api.example.com:8443 --header Authorization --value-from stdin
  agent grant http model --host api.example.com --header X-Api-Key --value-from file:/root/model.key
  agent run --grant github -- curl https://api.github.com/user`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 {
				return nil
			}
			return withHint(errors.New("one name is wanted"), "agent grant http NAME --host HOST --header Authorization --value-from env:VARIABLE")
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if err := e.needRootFor("agent grant http"); err != nil {
				return err
			}
			return e.grantHTTP(args[0], flags)
		},
	}
	f := cmd.Flags()
	f.StringVar(&flags.host, "host", "", "the one `HOST[:PORT]` that gets the header (port: 443)")
	f.StringVar(&flags.header, "header", "", "`NAME` of the header, such as Authorization")
	f.StringVar(&flags.from, "value-from", "", "where the value is read: env:`VARIABLE`, file:PATH or stdin")
	f.BoolVar(&flags.asJSON, "json", false, "print the grant as JSON")
	return cmd
}

func (e *env) grantHTTP(name string, flags headerFlags) error {
	h := grant.HTTP{Name: name, Header: flags.header}
	var err error
	if h.Host, h.Port, err = parseGrantHost(flags.host); err != nil {
		return err
	}
	value, err := e.readValue(flags)
	if err != nil {
		return err
	}
	h, err = grant.NewHTTP(h, value, e.keysDir())
	if _, ok := errors.AsType[*grant.Error](err); ok {
		return grantHint(err)
	}
	if err == nil {
		err = e.grants().Save(h)
	}
	if err != nil {
		return stateError(err)
	}
	if flags.asJSON {
		return e.printJSON(h)
	}
	fmt.Fprintf(e.stdout, "grant %s: %s for %s; use it with agent run --grant %s\n", h.Name, h.Header, h.Address(), h.Name)
	return nil
}

// parseGrantHost reads HOST[:PORT].
func parseGrantHost(text string) (host string, port uint16, err error) {
	const hint = "write the one host that gets the header, by its name: --host api.example.com, or with a port"
	if text == "" {
		return "", 0, withHint(errors.New("no host was given"), hint)
	}
	if name, digits, err := net.SplitHostPort(text); err == nil {
		number, err := strconv.ParseUint(digits, 10, 16)
		if err != nil || number == 0 {
			return "", 0, withHint(fmt.Errorf("host %q: %q is no port", text, digits), hint)
		}
		text, port = name, uint16(number)
	}
	host, err = policy.Host(text)
	return host, port, withHint(err, hint)
}

// maxValue is more than a value may have, in bytes.
const maxValue = 64 << 10

// readValue reads a header's value, without the end of its line.
func (e *env) readValue(flags headerFlags) (grant.Secret, error) {
	kind, where, _ := strings.Cut(flags.from, ":")
	var content []byte
	var err error
	switch {
	case kind == "env" && where != "":
		if content = []byte(e.getenv(where)); len(content) == 0 {
			return "", withHint(fmt.Errorf("variable %s is not set, or empty", where), "export it; under sudo: sudo --preserve-env=%s agent grant http ...", where)
		}
	case kind == "file" && where != "":
		path := e.absolute(e.dir, where)
		if content, err = readSecretFile(path); err != nil {
			return "", withHint(fmt.Errorf("read the value: %w", err), "name a file that only you can read (chmod 600), or hand it over: --value-from stdin <FILE")
		}
	case flags.from == "stdin":
		if content, err = e.readStdin(flags); err != nil {
			return "", fmt.Errorf("read the value from stdin: %w", err)
		}
	default:
		return "", withHint(errors.New("it is not said where the value is"), "--value-from env:VARIABLE, file:PATH or stdin")
	}
	text := strings.TrimSuffix(string(content), "\n")
	return grant.Secret(strings.TrimSuffix(text, "\r")), nil
}

// readSecretFile reads a file that others can neither read nor write.
func readSecretFile(path string) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", path)
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("others can read or write %s: its mode is %s", path, info.Mode())
	}
	return io.ReadAll(io.LimitReader(file, maxValue))
}

// readStdin asks for the value at a terminal, which does not show it.
func (e *env) readStdin(flags headerFlags) ([]byte, error) {
	terminal := int(e.stdin.Fd())
	if !term.IsTerminal(terminal) {
		return io.ReadAll(io.LimitReader(e.stdin, maxValue))
	}
	fmt.Fprintf(e.stderr, "value of %s for %s: ", printable(flags.header), printable(flags.host))
	content, err := term.ReadPassword(terminal)
	fmt.Fprintln(e.stderr)
	return content, err
}

// openHeaders decrypts the values of a run's HTTP grants.
func (s *runSpec) openHeaders(e *env) error {
	for _, g := range s.grants {
		h, ok := g.(grant.HTTP)
		if !ok {
			continue
		}
		key, err := grant.OpenKey(e.keysDir())
		if errors.Is(err, fs.ErrNotExist) {
			return withHint(err, "put it back, or make the grant anew: agent grant http %s ...", h.Name)
		}
		if err != nil {
			return grantHint(err)
		}
		value, err := h.Value(key)
		if err != nil {
			return grantHint(err)
		}
		opened := mitm.Grant{
			Name: h.Name, Host: h.Host, Port: h.Port, Header: h.Header,
			Value: func() string { return string(value) },
		}
		for _, other := range s.headers {
			if other.Host == h.Host && other.Port == h.Port && other.Header == h.Header {
				return withHint(fmt.Errorf("grants %s and %s are both for %s of %s", other.Name, h.Name, h.Header, h.Address()), "use one of them")
			}
		}
		s.headers = append(s.headers, opened)
	}
	return nil
}
