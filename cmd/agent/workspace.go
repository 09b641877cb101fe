package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"agentops/mitm/policy"

	"github.com/goccy/go-yaml"
)

// workspaceFile is a workspace's own settings for its runs. Flags add to the
// lists and win over the rest.
const workspaceFile = "agent.yaml"

// settings are what can be said of a run, in agent.yaml or by flags.
type settings struct {
	Name    string          `yaml:"name"`
	Grants  []string        `yaml:"grants"`
	Command []string        `yaml:"command"`
	Env     []string        `yaml:"env"`    // NAME or NAME=VALUE
	Mounts  []string        `yaml:"mounts"` // SRC:DST[:ro]; SRC may be relative to the workspace
	Rootfs  string          `yaml:"rootfs"` // likewise
	CapAdd  []string        `yaml:"cap_add"`
	Limits  limitSettings   `yaml:"limits"`
	Network networkSettings `yaml:"network"`
}

// limitSettings are numbers as they were written, empty where none was.
type limitSettings struct {
	Memory    string `yaml:"memory"` // bytes, or with k, m, g, t: 512m
	CPUs      string `yaml:"cpus"`   // 0.5
	PIDs      string `yaml:"pids"`
	OpenFiles string `yaml:"open_files"`
}

type networkSettings struct {
	Policy  string        `yaml:"policy"` // permissive, strict
	Allow   []policy.Rule `yaml:"allow"`
	Deny    []policy.Rule `yaml:"deny"`
	Resolve []string      `yaml:"resolve"` // NAME=IP[:PORT]
	// HOST[:PORTS], whose TLS is not opened
	Passthrough []string `yaml:"passthrough"`

	Limits networkLimits `yaml:",inline"`

	source string // where Policy is set
}

// from notes where the settings stand.
func (n *networkSettings) from(path string) error {
	n.source = path
	return rulesFrom(path, n.Allow, n.Deny)
}

func rulesFrom(path string, lists ...[]policy.Rule) error {
	for _, rules := range lists {
		for i, rule := range rules {
			if rule.String() == "" { // null in the file
				return fmt.Errorf("%s: there is a rule with nothing in it", path)
			}
			rules[i] = rule.From(path)
		}
	}
	return nil
}

// readSettings reads a workspace's agent.yaml; there need not be one.
func readSettings(workspace string) (settings, error) {
	path := filepath.Join(workspace, workspaceFile)
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return settings{}, nil
	}
	if err != nil {
		return settings{}, fmt.Errorf("read %s: %w", workspaceFile, err)
	}
	return parseSettings(path, content)
}

// parseSettings reads what is in the file at path.
func parseSettings(path string, content []byte) (s settings, err error) {
	if err := decodeStrictly(path, content, &s, settingsKeys); err != nil {
		return settings{}, err
	}
	return s, s.Network.from(path)
}

// ruleKeys are those of a rule in parts, settingsKeys all that agent.yaml may
// have, for who misspells one.
var (
	ruleKeys     = []string{"host", "ports", "methods", "paths", "tcp", "udp"}
	settingsKeys = slices.Concat([]string{
		"name", "grants", "command", "env", "mounts", "rootfs", "cap_add", "limits", "network",
		"memory", "cpus", "pids", "open_files",
		"policy", "allow", "deny", "resolve", "passthrough",
	}, networkLimitKeys, ruleKeys)
)

// decodeStrictly reads one YAML document with no other keys than those of into.
func decodeStrictly(path string, content []byte, into any, keys []string) error {
	decoder := yaml.NewDecoder(bytes.NewReader(content), yaml.Strict())
	if err := decoder.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return describeYAML(path, err, keys)
	}
	if err := decoder.Decode(new(any)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: there must be one document in it", path)
	}
	return nil
}

// describeYAML says where in a file the decoder was not content, and with what.
func describeYAML(path string, err error, keys []string) error {
	position := path
	yamlErr, ok := errors.AsType[yaml.Error](err)
	if !ok {
		return fmt.Errorf("%s: %w", path, err)
	}
	if token := yamlErr.GetToken(); token != nil {
		position = fmt.Sprintf("%s:%d", path, token.Position.Line)
	}
	located := fmt.Errorf("%s: %s", position, yamlErr.GetMessage())
	if unknown, ok := errors.AsType[*yaml.UnknownFieldError](err); ok {
		return withHint(located, "did you mean %q?", nearest(unknown.Token.Value, keys))
	}
	return located
}

// nearest returns the candidate with the fewest changes from word.
func nearest(word string, candidates []string) string {
	return slices.MinFunc(candidates, func(a, b string) int { return distance(word, a) - distance(word, b) })
}

// distance counts the letters to insert, delete or replace (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			changed := diagonal
			if a[i] != b[j] {
				changed++
			}
			diagonal = row[j+1]
			row[j+1] = min(changed, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
