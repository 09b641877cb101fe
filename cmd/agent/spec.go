package main

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"agentops/audit"
	"agentops/bpf"
	"agentops/credsrv/grant"
	"agentops/mitm"
	"agentops/mitm/policy"
	"agentops/runtime"
)

// runFlags are the flags of agent run.
type runFlags struct {
	settings
	strict     bool
	workspace  string
	upstreamCA string
	terminal   bool
	stdin      bool
	quiet      bool
}

// runSpec is one run, resolved: everything that can be wrong with what the user
// asked for has been found. It does not change.
type runSpec struct {
	id, name  string
	command   []string
	workspace string
	rootfs    string
	mounts    []runtime.Mount
	capAdd    []string
	limits    audit.Limits
	env       []string // given by the user: NAME or NAME=VALUE
	grants    []grant.Grant
	roles     []grant.AWS  // of grants
	headers   []mitm.Grant // likewise, opened
	policy    policy.Policy
	pins      []mitm.Pin
	network   mitm.Limits
	roots     func() *x509.CertPool // of upstreams
	bundle    []byte                // system roots, PEM
	terminal  bool
	stdin     bool
	quiet     bool
	recorded  audit.RunStart
}

// resolve makes a run of the flags and the workspace's agent.yaml.
func (e *env) resolve(flags runFlags, command []string) (*runSpec, error) {
	if e.uid != 0 {
		return nil, withHint(errors.New("agent run needs root: it makes namespaces and loads eBPF"), "sudo agent run ...")
	}
	if err := inFile("/proc/self/mounts", " cgroup2 ", "no cgroup2 is mounted, which runs need (Linux 4.5)"); err != nil {
		return nil, withHint(err, "mount -t cgroup2 none /sys/fs/cgroup, or /sys/fs/cgroup/unified beside version 1")
	}
	// What takes a while, beside the rest; it is asked for below.
	supported, bundle := sync.OnceValue(bpf.Supported), sync.OnceValues(runtime.SystemBundle)
	go func() { _ = supported() }()
	go func() { _, _ = bundle() }()
	checker := runtime.NewChecker(e.hidden()...)
	workspace, err := e.resolveWorkspace(checker, flags.workspace)
	if err != nil {
		return nil, err
	}
	host, err := e.readHostPolicy()
	if err != nil {
		return nil, err
	}
	if err := host.checkWorkspace(workspace); err != nil {
		return nil, err
	}
	file, err := readSettings(workspace)
	if err != nil {
		return nil, err
	}
	merged := merge(file, e.fromHere(flags.settings))
	if len(command) > 0 {
		merged.Command = command
	}
	if len(merged.Command) == 0 || merged.Command[0] == "" {
		return nil, withHint(errors.New("no command was given"), "agent run -- COMMAND [ARG...], or command: in %s", workspaceFile)
	}
	if flags.strict {
		merged.Network.Policy, merged.Network.source = string(policy.Strict), "--strict"
	}
	s := &runSpec{
		id:        newRunID(),
		name:      merged.Name,
		command:   merged.Command,
		workspace: workspace,
		env:       merged.Env,
		terminal:  flags.terminal,
		stdin:     flags.stdin,
		quiet:     flags.quiet,
	}
	if s.name == "" {
		s.name = s.id
	}
	if err := s.resolveView(e, checker, merged, host); err != nil {
		return nil, err
	}
	if err := s.resolveCage(merged); err != nil {
		return nil, err
	}
	if err := s.resolveGrants(e, merged.Grants, host); err != nil {
		return nil, err
	}
	if err := s.openHeaders(e); err != nil {
		return nil, err
	}
	if err := s.resolveNetwork(merged.Network, host); err != nil {
		return nil, err
	}
	if s.bundle, err = bundle(); err != nil {
		return nil, err
	}
	if err := s.resolveTrust(flags.upstreamCA); err != nil {
		return nil, err
	}
	if err := supported(); err != nil {
		return nil, withHint(err, "agent doctor says what else this host has and lacks")
	}
	s.recorded = s.record(merged, host)
	return s, nil
}

// fromHere makes the paths of flags absolute: they are relative to where the user
// is, those of agent.yaml to the workspace.
func (e *env) fromHere(flags settings) settings {
	if flags.Rootfs != "" {
		flags.Rootfs = e.absolute(e.dir, flags.Rootfs)
	}
	flags.Mounts = slices.Clone(flags.Mounts)
	for i, text := range flags.Mounts {
		if source, rest, ok := strings.Cut(text, ":"); ok && source != "" {
			flags.Mounts[i] = e.absolute(e.dir, source) + ":" + rest
		}
	}
	return flags
}

// merge lays flags over agent.yaml: lists are joined, the rest is replaced.
func merge(file, flags settings) settings {
	either := func(flag, file string) string {
		if flag != "" {
			return flag
		}
		return file
	}
	return settings{
		Name:    either(flags.Name, file.Name),
		Grants:  join(file.Grants, flags.Grants),
		Command: file.Command,
		Env:     join(file.Env, flags.Env),
		Mounts:  join(file.Mounts, flags.Mounts),
		Rootfs:  either(flags.Rootfs, file.Rootfs),
		CapAdd:  join(file.CapAdd, flags.CapAdd),
		Limits: limitSettings{
			Memory:    either(flags.Limits.Memory, file.Limits.Memory),
			CPUs:      either(flags.Limits.CPUs, file.Limits.CPUs),
			PIDs:      either(flags.Limits.PIDs, file.Limits.PIDs),
			OpenFiles: either(flags.Limits.OpenFiles, file.Limits.OpenFiles),
		},
		Network: networkSettings{
			Policy:      file.Network.Policy,
			source:      file.Network.source,
			Allow:       join(file.Network.Allow, flags.Network.Allow),
			Deny:        join(file.Network.Deny, flags.Network.Deny),
			Resolve:     join(file.Network.Resolve, flags.Network.Resolve),
			Passthrough: join(file.Network.Passthrough, flags.Network.Passthrough),
			Limits:      file.Network.Limits,
		},
	}
}

func join[T any](a, b []T) []T { return append(append([]T{}, a...), b...) }

func (e *env) resolveWorkspace(checker *runtime.Checker, flag string) (string, error) {
	dir := e.dir
	if flag != "" {
		dir = e.absolute(e.dir, flag)
	}
	if dir == "" {
		return "", withHint(errors.New("the current folder is gone"), "cd to a project folder, or choose one with -w DIR")
	}
	workspace, err := checker.Workspace(dir)
	return workspace, withHint(err, "run from a project folder, or choose one with -w DIR")
}

// hidden are the folders of AgentOps itself.
func (e *env) hidden() []string { return []string{e.stateDir(), e.runDir()} }

func (e *env) absolute(base, path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(base, path)
}

func (s *runSpec) resolveView(e *env, checker *runtime.Checker, merged settings, host *hostPolicy) error {
	if merged.Rootfs != "" {
		rootfs, err := checker.Rootfs(e.absolute(s.workspace, merged.Rootfs))
		if err != nil {
			return err
		}
		if err := host.checkMount("rootfs", rootfs); err != nil {
			return err
		}
		s.rootfs = rootfs
	}
	for _, text := range merged.Mounts {
		parts := strings.Split(text, ":")
		readOnly := len(parts) == 3 && parts[2] == "ro"
		if len(parts) != 2 && !readOnly || parts[0] == "" || parts[1] == "" {
			return fmt.Errorf("mount %q is not SRC:DST or SRC:DST:ro", text)
		}
		mount, err := checker.Mount(runtime.Mount{
			Source:      e.absolute(s.workspace, parts[0]),
			Destination: parts[1],
			ReadOnly:    readOnly,
		})
		if err != nil {
			return err
		}
		if err := host.checkMount("mount", mount.Source); err != nil {
			return err
		}
		s.mounts = append(s.mounts, mount)
	}
	_, err := runtime.Environ(nil, s.rootfs, nil, s.env)
	return err
}

// resolveCage finds what the run may do beyond the usual, and how much it may
// take.
func (s *runSpec) resolveCage(merged settings) error {
	for _, name := range merged.CapAdd {
		capability, err := runtime.CheckCapability(name)
		if unknown, ok := errors.AsType[*runtime.UnknownCapabilityError](err); ok {
			return withHint(err, "did you mean %s?", nearest(strings.ToUpper(unknown.Name), runtime.KnownCapabilities()))
		}
		if err != nil {
			return withHint(err, "a run can be given %s", strings.Join(runtime.AddableCapabilities(), ", "))
		}
		if !slices.Contains(s.capAdd, capability) {
			s.capAdd = append(s.capAdd, capability)
		}
	}
	limits, err := parseLimits(merged.Limits)
	if err != nil {
		return err
	}
	s.limits, err = runtime.CheckLimits(limits)
	return err
}

// resolveGrants reads the run's grants, each once.
func (s *runSpec) resolveGrants(e *env, names []string, host *hostPolicy) error {
	for _, name := range names {
		if err := host.checkGrant(name); err != nil {
			return err
		}
		if slices.ContainsFunc(s.grants, func(g grant.Grant) bool { return g.GrantName() == name }) {
			continue
		}
		g, err := e.loadGrant(name)
		if err != nil {
			return err
		}
		s.grants = append(s.grants, g)
		if role, ok := g.(grant.AWS); ok {
			s.roles = append(s.roles, role)
		}
	}
	return nil
}

// resolveNetwork makes the policy of the run's settings and its grants, narrowed
// by the host's.
func (s *runSpec) resolveNetwork(n networkSettings, host *hostPolicy) error {
	mode, err := policy.ParseMode(n.Policy)
	if err != nil {
		return err
	}
	s.policy = policy.Policy{Mode: mode, Source: n.source, Allow: n.Allow, Deny: n.Deny}
	for _, g := range s.grants {
		rules, err := policy.ParseRules(g.Hosts())
		if err != nil {
			return err
		}
		for _, rule := range rules {
			s.policy.Allow = append(s.policy.Allow, rule.From("grant "+g.GrantName()))
		}
	}
	if s.network, err = n.Limits.resolve(host); err != nil {
		return err
	}
	for _, text := range n.Passthrough {
		rule, err := policy.ParsePassthrough(text)
		if err != nil {
			return err
		}
		if err := host.checkPassthrough(rule); err != nil {
			return err
		}
		s.policy.Passthrough = append(s.policy.Passthrough, rule)
	}
	for _, g := range s.headers {
		if s.policy.PassesThrough(g.Host, g.Port) {
			return withHint(fmt.Errorf("grant %s is of no use: the TLS with %s is not opened", g.Name, g.Host), "leave out the grant, or the passthrough")
		}
	}
	host.narrow(&s.policy)
	for _, text := range n.Resolve {
		pin, err := mitm.ParsePin(text)
		if err != nil {
			return err
		}
		s.pins = append(s.pins, pin)
	}
	return nil
}

// resolveTrust reads the roots that upstreams are verified against beside the
// bundle's.
func (s *runSpec) resolveTrust(upstreamCA string) error {
	var further []byte
	if upstreamCA != "" {
		var err error
		if further, err = os.ReadFile(upstreamCA); err != nil {
			return fmt.Errorf("read --upstream-ca: %w", err)
		}
		if !x509.NewCertPool().AppendCertsFromPEM(further) {
			return fmt.Errorf("--upstream-ca %s: there is no PEM certificate in it", upstreamCA)
		}
	}
	// To parse a system's roots takes as long as to start a container; many a
	// run needs none.
	s.roots = sync.OnceValue(func() *x509.CertPool {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(s.bundle) // none: every upstream is refused
		pool.AppendCertsFromPEM(further)
		return pool
	})
	return nil
}

func (s *runSpec) record(merged settings, hostPolicy *hostPolicy) audit.RunStart {
	n := merged.Network
	host, _ := os.Hostname() // recorded empty
	p := audit.Policy{
		Mode:        string(s.policy.Mode),
		Allow:       texts(n.Allow),
		Deny:        texts(s.policy.Deny),
		Resolve:     n.Resolve,
		Passthrough: n.Passthrough,
		Limits:      recordLimits(s.network),
	}
	if hostPolicy != nil {
		p.File = hostPolicy.path
	}
	if s.policy.Bound != nil {
		p.Within = texts(s.policy.Bound.Allow)
	}
	return audit.RunStart{
		Schema:    audit.SchemaVersion,
		Name:      s.name,
		Agent:     version,
		Kernel:    kernelRelease(),
		Host:      host,
		Command:   s.command,
		Workspace: s.workspace,
		Rootfs:    s.rootfs,
		Grants:    merged.Grants,
		CapAdd:    s.capAdd,
		Limits:    s.limits,
		Policy:    p,
	}
}

func texts(rules []policy.Rule) []string {
	written := make([]string, len(rules))
	for i, rule := range rules {
		written[i] = rule.String()
	}
	return written
}

// newRunID returns an id that sorts by the time of its making: date, time,
// milliseconds and five random digits.
func newRunID() string {
	random := make([]byte, 3)
	rand.Read(random) // never fails
	now := time.Now().UTC()
	return fmt.Sprintf("%s-%03d%.5s", now.Format("20060102-150405"), now.Nanosecond()/int(time.Millisecond), hex.EncodeToString(random))
}
