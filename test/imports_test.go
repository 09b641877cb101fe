package test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// mayImport says which of our packages each may import, itself and its own
// subpackages aside. cmd/agent and test may import all.
var mayImport = map[string][]string{
	"audit":          {},
	"bpf":            {},
	"netns":          {},
	"runtime/pages":  {},
	"runtime/sysmon": {},
	"helper":         {},
	"runtime":        {"audit", "runtime"},
	"runtime/child":  {},
	"mitm":           {"audit", "mitm"},
	"mitm/policy":    {},
	"mitm/authority": {},
	"mitm/resolver":  {"audit", "mitm/policy"},
	"credsrv":        {"audit", "credsrv"},
	"credsrv/grant":  {},
}

// Siblings know nothing of each other: cmd/agent alone composes them.
func TestImportDirections(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}}:{{join .Imports " "}}`, "agentops/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		path, imports, _ := strings.Cut(strings.TrimSpace(line), ":")
		name := strings.TrimPrefix(path, "agentops/")
		allowed, ok := mayImport[name]
		if !ok {
			if !slices.ContainsFunc([]string{"cmd/", "test"}, func(p string) bool { return strings.HasPrefix(name, p) }) {
				t.Errorf("package %s is in no row of the table", name)
			}
			continue
		}
		seen++
		for _, imported := range strings.Fields(imports) {
			ours, isOurs := strings.CutPrefix(imported, "agentops/")
			if isOurs && !slices.ContainsFunc(allowed, func(a string) bool { return ours == a || strings.HasPrefix(ours, a+"/") }) {
				t.Errorf("%s imports %s", name, ours)
			}
		}
	}
	if seen != len(mayImport) {
		t.Errorf("%d packages of the table are there, want %d", seen, len(mayImport))
	}
}
