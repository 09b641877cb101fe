package test

import (
	"debug/buildinfo"
	"strings"
	"testing"

	"agentops/audit"
)

// What make builds keeps journals: the tag of the build that measures what they cost
// is in no other.
func TestTheBinaryRecords(t *testing.T) {
	if !audit.Recording {
		t.Error("the tests run without journals")
	}
	info, err := buildinfo.ReadFile(agentPath(t))
	if err != nil {
		t.Fatal(err)
	}
	tags := ""
	for _, setting := range info.Settings {
		if setting.Key == "-tags" {
			tags = setting.Value
		}
	}
	if !strings.Contains(tags, "netgo") || strings.Contains(tags, "noaudit") {
		t.Errorf("agent is built with tags %q", tags)
	}
}
