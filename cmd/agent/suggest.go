package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"agentops/audit"
	"agentops/mitm/policy"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"
)

func newPolicySuggestCommand(e *env) *cobra.Command {
	var paths, refused, asJSON bool
	cmd := &cobra.Command{
		Use:   "suggest [RUN|last]",
		Short: "Print the smallest strict policy that a run would have passed under",
		Long: `Print the smallest strict network: block for agent.yaml under which all that a run
reached would have been allowed, by its journal. RUN is an id, a name, or "last".
What its grants bring is left out, and where it dialled by --resolve is kept.`,
		Example: `  agent policy suggest last
  agent policy suggest build --paths > agent.yaml`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			which := "last"
			if len(args) == 1 {
				which = args[0]
			}
			return e.suggest(which, paths, refused, asJSON)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&paths, "paths", false, "name methods and paths as well")
	f.BoolVar(&refused, "refused", false, "allow also what the run was refused for want of a rule")
	f.BoolVar(&asJSON, "json", false, "print a JSON object")
	return cmd
}

// suggestion is a part of agent.yaml.
type suggestion struct {
	Network struct {
		Policy  policy.Mode `yaml:"policy" json:"policy"`
		Allow   []string    `yaml:"allow" json:"allow"`
		Resolve []string    `yaml:"resolve,omitempty" json:"resolve,omitempty"`
	} `yaml:"network" json:"network"`
}

func (e *env) suggest(which string, paths, refused, asJSON bool) error {
	folder, err := e.findRun(which)
	if err != nil {
		return err
	}
	r := reached{flows: map[uint64]*policy.Target{}, targets: map[policy.Target]bool{}, refused: refused}
	keys, err := e.pinnedKeys(nil)
	if err != nil {
		return err
	}
	report, err := verifyJournal(filepath.Join(folder, journalName), keys, r.visit)
	if err != nil {
		return err
	}
	if !report.Verified() {
		e.warn("the journal of run %s does not hold; see agent audit %s", report.Run, report.Run)
	}
	for _, t := range r.flows {
		if t != nil { // nothing was seen in it that could be told apart
			r.targets[*t] = true
		}
	}
	var s suggestion
	s.Network.Policy = policy.Strict
	s.Network.Resolve = r.start.Policy.Resolve
	s.Network.Allow = smallest(r.targets, e.grantRules(r.start.Grants), paths)
	if asJSON {
		return e.printJSON(s)
	}
	content, err := yaml.Marshal(s)
	if err != nil {
		return err
	}
	_, err = e.stdout.Write(content)
	return err
}

// grantRules are those that grants bring. Of one that is gone nothing is known.
func (e *env) grantRules(names []string) []policy.Rule {
	var brought []policy.Rule
	for _, name := range names {
		if g, err := e.grants().Load(name); err == nil {
			if rules, err := policy.ParseRules(g.Hosts()); err == nil {
				brought = append(brought, rules...)
			}
		}
	}
	return brought
}

// reached gathers from a journal what a run has reached.
type reached struct {
	refused bool // what was refused, too
	start   audit.RunStart
	flows   map[uint64]*policy.Target // by number: those with no request so far; nil: with one
	targets map[policy.Target]bool
}

func (r *reached) visit(h audit.Header, line []byte) error {
	switch h.Type {
	case audit.RunStart{}.Type():
		return json.Unmarshal(line, &r.start)
	case audit.FlowOpen{}.Type():
		var e audit.FlowOpen
		if err := json.Unmarshal(line, &e); err != nil {
			return err
		}
		t := &policy.Target{Host: e.Host, Port: e.Port}
		switch e.Protocol {
		case "tls":
			t.Protocol = policy.HTTP // unless it says otherwise at its end
		case "opaque":
			t.Protocol = policy.NotHTTP
		case "udp":
			t.Protocol = policy.UDP
		default: // of HTTP, the requests tell; DNS is for all
			t = nil
		}
		r.flows[e.Flow] = t
	case audit.FlowClose{}.Type():
		var e audit.FlowClose
		if err := json.Unmarshal(line, &e); err != nil {
			return err
		}
		if t := r.flows[e.Flow]; t != nil && t.Protocol == policy.HTTP && e.Upstream != "" {
			t.Protocol = policy.NotHTTP // what was in TLS was relayed as it was
		}
	case audit.HTTPRequest{}.Type():
		var e audit.HTTPRequest
		if err := json.Unmarshal(line, &e); err != nil {
			return err
		}
		r.flows[e.Flow] = nil
		return r.request(e.Method, e.URL)
	case audit.Refused{}.Type():
		var e audit.Refused
		if err := json.Unmarshal(line, &e); err != nil {
			return err
		}
		return r.refusal(e)
	}
	return nil
}

func (r *reached) refusal(e audit.Refused) error {
	r.flows[e.Flow] = nil
	reason := policy.Reason(e.Reason)
	switch {
	case r.refused && e.Protocol == "udp" && (reason == policy.NotAllowed || reason == audit.ReasonProtocol && !isGroup(e.Host)):
		r.targets[policy.Target{Host: e.Host, Port: e.Port, Protocol: policy.UDP}] = true
	case !r.refused || reason != policy.NotAllowed && reason != policy.Opaque:
	case e.URL != "":
		return r.request(e.Method, e.URL)
	case e.Protocol == "opaque" || e.Protocol == "tls":
		r.targets[policy.Target{Host: e.Host, Port: e.Port, Protocol: policy.NotHTTP}] = true
	}
	return nil
}

// isGroup reports whether no rule opens an address to datagrams.
func isGroup(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && (addr.IsMulticast() || addr == broadcast)
}

// maxURL is how long a URL in a journal can be before it was cut, in bytes.
const maxURL = 8 << 10

func (r *reached) request(method, text string) error {
	// The path may be one that net/url does not read.
	scheme, rest, _ := strings.Cut(text, "://")
	address, path, _ := strings.Cut(rest, "/")
	path, _, _ = strings.Cut("/"+path, "?")
	address, _, _ = strings.Cut(address, "?")
	if before, ok := strings.CutSuffix(address, "*"); ok || len(text) > maxURL { // OPTIONS *, or cut off
		address, path = before, ""
	}
	u := url.URL{Host: address}
	port := map[string]uint64{"http": 80, "https": 443}[scheme]
	if u.Port() != "" {
		var err error
		if port, err = strconv.ParseUint(u.Port(), 10, 16); err != nil {
			return fmt.Errorf("the journal has a request to %q: %w", text, err)
		}
	}
	r.targets[policy.Target{Host: u.Hostname(), Port: uint16(port), Protocol: policy.HTTP, Method: method, Path: path}] = true
	return nil
}

// smallest returns the rules that allow the targets, sorted, and leaves out those
// that are allowed anyway.
func smallest(targets map[policy.Target]bool, anyway []policy.Rule, paths bool) []string {
	given := policy.Policy{Mode: policy.Strict, Allow: anyway}
	hosts := map[policy.Target]map[string]map[string]bool{} // methods by path by host and port
	for t := range targets {
		opaque := policy.Target{Host: t.Host, Port: t.Port, Protocol: policy.NotHTTP}
		if given.Decide(t).Allowed || t.Protocol == policy.HTTP && targets[opaque] { // a rule for that is one for all
			continue
		}
		method, path := t.Method, t.Path
		t.Method, t.Path = "", ""
		if hosts[t] == nil {
			hosts[t] = map[string]map[string]bool{}
		}
		if hosts[t][path] == nil {
			hosts[t][path] = map[string]bool{}
		}
		hosts[t][path][method] = true
	}
	ports := map[policy.Target][]uint16{} // by what has no port
	rules := []string{}
	for t, byPath := range hosts {
		if narrow := requestRules(t, byPath); paths && narrow != nil {
			rules = append(rules, narrow...)
			continue
		}
		port := t.Port
		t.Port = 0
		ports[t] = append(ports[t], port)
	}
	for t, numbers := range ports {
		slices.Sort(numbers)
		t.Port = numbers[0]
		rule := t.Rule()
		for _, number := range numbers[1:] {
			rule += "," + strconv.Itoa(int(number))
		}
		rules = append(rules, rule)
	}
	slices.Sort(rules)
	return rules
}

// requestRules has a rule for each set of methods and the paths that were asked for
// with them. It is nil when the requests cannot be told apart by rules.
func requestRules(t policy.Target, byPath map[string]map[string]bool) []string {
	byMethods := map[string][]string{}
	for path, methods := range byPath {
		rules := policy.Target{Host: t.Host, Port: t.Port, Protocol: t.Protocol, Method: "GET", Path: path}.Rule()
		_, pattern, ok := strings.Cut(rules, " /")
		if !ok {
			return nil
		}
		list := strings.Join(slices.Sorted(maps.Keys(methods)), ",")
		byMethods[list] = append(byMethods[list], "/"+pattern)
	}
	address := t.Rule()
	var rules []string
	for methods, patterns := range byMethods {
		slices.Sort(patterns)
		rule := methods + " " + address + " " + strings.Join(slices.Compact(patterns), " ")
		if _, err := policy.ParseRule(rule); err != nil {
			return nil
		}
		rules = append(rules, rule)
	}
	return rules
}
