package main

import (
	"slices"
	"testing"

	"agentops/test/escape/attempt"
)

// Attempts are told apart by name, and their processes by what the kernel keeps
// of it: 15 bytes.
func TestNamesAreUnique(t *testing.T) {
	stage := &attempt.Stage{
		Host4: "192.0.2.1", Host6: "2001:db8::1",
		Canaries: []string{"/root/.x", "/home/.x"}, Sockets: []string{"/run/x.sock"},
	}
	seen, classes := make(map[string]string), make(map[string]int)
	for _, p := range probes(stage) {
		comm := p.name[:min(15, len(p.name))]
		if other, ok := seen[comm]; ok {
			t.Errorf("%s and %s have the same name for the kernel", p.name, other)
		}
		seen[comm] = p.name
		if !slices.Contains(attempt.Classes, p.class) {
			t.Errorf("%s is of the class %q", p.name, p.class)
		}
		classes[p.class]++
	}
	for _, class := range attempt.Classes {
		if classes[class] == 0 {
			t.Errorf("there is no attempt of the class %s", class)
		}
	}
}
