package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"agentops/mitm/policy"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"golang.org/x/sys/unix"
)

// hostPolicyFile narrows every run on the host. It is root's, and its path is
// fixed: what could be pointed elsewhere would bind nobody.
const hostPolicyFile = "/etc/agentops/policy.yaml"

// hostPolicy is what is in that file. A list that is there limits, even an empty
// one; a nil *hostPolicy limits nothing.
type hostPolicy struct {
	path string

	Network struct {
		Policy string        `yaml:"policy"` // strict: every run is
		Allow  []policy.Rule `yaml:"allow"`  // what runs may be allowed at all
		Deny   []policy.Rule `yaml:"deny"`   // added to every run's
		// hosts whose TLS runs may leave unopened
		Passthrough []string `yaml:"passthrough"`
		// the most that runs may have
		Limits networkLimits `yaml:",inline"`
	} `yaml:"network"`
	Grants     []string `yaml:"grants"`     // names of grants that runs may use
	Mounts     []string `yaml:"mounts"`     // folders that mounts and root trees may be in
	Workspaces []string `yaml:"workspaces"` // folders that workspaces may be in

	mode        policy.Mode
	passthrough []policy.Rule
}

var hostPolicyKeys = slices.Concat([]string{"network", "policy", "allow", "deny", "passthrough", "grants", "mounts", "workspaces"}, networkLimitKeys, ruleKeys)

// readHostPolicy reads the host's policy; nil without one. A file that others than
// root could have written, or taken away, is an error, as is one that cannot be
// read.
func (e *env) readHostPolicy() (*hostPolicy, error) {
	path := e.hostPolicy
	if path == "" { // of tests
		return nil, nil
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		info, err := os.Lstat(dir)
		if err == nil {
			err = rootsAlone(dir, info, fs.ModeDir)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, ownerError(err)
		}
		if dir == "/" {
			break
		}
	}
	// A file of another kind must not make us wait.
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, withHint(fmt.Errorf("read the host's policy: %w", err), "no run goes without it; it must be a file, not a link to one")
	}
	defer file.Close()
	info, err := file.Stat()
	if err == nil {
		err = rootsAlone(path, info, 0)
	}
	if err != nil {
		return nil, ownerError(err)
	}
	content, err := io.ReadAll(file)
	if err != nil {
		return nil, fmt.Errorf("read the host's policy: %w", err)
	}
	return parseHostPolicy(path, content)
}

func ownerError(err error) error {
	return withHint(fmt.Errorf("the host's policy: %w", err), "chown root:root and chmod go-w the file and the folders that it is in")
}

// rootsAlone returns an error for what is of another kind, or what others than root
// may change.
func rootsAlone(path string, info fs.FileInfo, kind fs.FileMode) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case info.Mode().Type() != kind:
		return fmt.Errorf("%s is neither a folder nor a regular file where one must be", path)
	case !ok || st.Uid != 0:
		return fmt.Errorf("%s is not root's", path)
	case info.Mode().Perm()&0o022 != 0 && (!info.IsDir() || info.Mode()&fs.ModeSticky == 0):
		return fmt.Errorf("%s can be written by others than root", path)
	}
	return nil
}

func parseHostPolicy(path string, content []byte) (*hostPolicy, error) {
	h := &hostPolicy{path: path}
	if err := decodeStrictly(path, content, h, hostPolicyKeys); err != nil {
		return nil, err
	}
	if err := noNulls(path, content); err != nil {
		return nil, err
	}
	if err := rulesFrom(path, h.Network.Allow, h.Network.Deny); err != nil {
		return nil, err
	}
	for _, folder := range slices.Concat(h.Mounts, h.Workspaces) {
		if !filepath.IsAbs(folder) {
			return nil, fmt.Errorf("%s: folder %q is not absolute", path, folder)
		}
	}
	for _, text := range h.Network.Passthrough {
		rule, err := policy.ParsePassthrough(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		h.passthrough = append(h.passthrough, rule)
	}
	var err error
	if h.mode, err = policy.ParseMode(h.Network.Policy); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return h, nil
}

// noNulls refuses keys with nothing behind them: a list whose items were all
// taken out may be meant to be empty, and would be no limit at all.
func noNulls(path string, content []byte) error {
	file, err := parser.ParseBytes(content, 0)
	if err != nil {
		return describeYAML(path, err, hostPolicyKeys)
	}
	for _, doc := range file.Docs {
		var found nulls
		if doc.Body != nil && doc.Body.Type() != ast.NullType {
			ast.Walk(&found, doc.Body)
		}
		if found.line > 0 {
			return withHint(fmt.Errorf("%s:%d: there is nothing behind the key or dash", path, found.line), "write [] for a list that allows nothing, or leave the key out")
		}
	}
	return nil
}

// nulls looks for the line of a null.
type nulls struct{ line int }

// Visit implements ast.Visitor.
func (n *nulls) Visit(node ast.Node) ast.Visitor {
	if node.Type() == ast.NullType && n.line == 0 {
		n.line = node.GetToken().Position.Line
	}
	return n
}

// narrow lets a run's policy allow no more than the host's.
func (h *hostPolicy) narrow(p *policy.Policy) {
	if h == nil {
		return
	}
	if h.mode == policy.Strict && p.Mode != policy.Strict {
		p.Mode, p.Source = policy.Strict, h.path
	}
	p.Deny = append(slices.Clip(p.Deny), h.Network.Deny...)
	if h.Network.Allow != nil {
		p.Bound = &policy.Bound{Mode: h.mode, Source: h.path, Allow: h.Network.Allow}
	}
}

func (h *hostPolicy) checkGrant(name string) error {
	if h == nil || h.Grants == nil || slices.Contains(h.Grants, name) {
		return nil
	}
	return h.refuse("grants", "grant "+name, h.Grants)
}

func (h *hostPolicy) checkPassthrough(rule policy.Rule) error {
	if h == nil || h.Network.Passthrough == nil || slices.ContainsFunc(h.passthrough, rule.Within) {
		return nil
	}
	return h.refuse("network.passthrough", "passthrough "+rule.String(), h.Network.Passthrough)
}

// checkMount takes a path whose links are resolved.
func (h *hostPolicy) checkMount(what, path string) error {
	if h == nil || h.Mounts == nil || inFolders(path, h.Mounts) {
		return nil
	}
	return h.refuse("mounts", what+" "+path, h.Mounts)
}

// checkWorkspace likewise.
func (h *hostPolicy) checkWorkspace(path string) error {
	if h == nil || h.Workspaces == nil || inFolders(path, h.Workspaces) {
		return nil
	}
	return h.refuse("workspaces", "workspace "+path, h.Workspaces)
}

func (h *hostPolicy) refuse(key, what string, allowed []string) error {
	list := "none"
	if len(allowed) > 0 {
		list = strings.Join(allowed, ", ")
	}
	return withHint(fmt.Errorf("%s is refused by %s, which allows %s", what, h.path, list), "%s: in %s holds for every run on this host", key, h.path)
}

func inFolders(path string, folders []string) bool {
	return slices.ContainsFunc(folders, func(folder string) bool {
		if real, err := filepath.EvalSymlinks(folder); err == nil {
			folder = real
		}
		relative, err := filepath.Rel(folder, path)
		return err == nil && filepath.IsLocal(relative)
	})
}
