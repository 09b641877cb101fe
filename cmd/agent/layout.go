package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"agentops/bpf"
)

// layoutName is the file in the run folder that keeps the kernel's layout: to read
// it takes longer than to start a container, and it is the same until the next
// boot. The name has a dot before it, as what is no run's.
const layoutName = ".layout.json"

// keptLayout is the content of that file.
type keptLayout struct {
	Boot   string     `json:"boot"`  // the kernel's boot id
	Agent  string     `json:"agent"` // the version that wrote it
	Layout bpf.Layout `json:"layout"`
}

// kernelLayout is the running kernel's layout, read once a boot.
func (e *env) kernelLayout() (bpf.Layout, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return bpf.Layout{}, fmt.Errorf("read the kernel's boot id: %w", err)
	}
	id := strings.TrimSpace(string(boot))
	path := filepath.Join(e.runDir(), layoutName)
	var kept keptLayout
	// A file that cannot be read is made anew.
	if content, err := os.ReadFile(path); err == nil && json.Unmarshal(content, &kept) == nil && kept.Boot == id && kept.Agent == version {
		return kept.Layout, nil
	}
	layout, err := bpf.ReadLayout()
	if err != nil {
		return layout, err
	}
	content, err := json.Marshal(keptLayout{Boot: id, Agent: version, Layout: layout})
	if err != nil {
		return layout, err
	}
	if err := writeWhole(path, content); err != nil { // other agents read it
		return layout, fmt.Errorf("keep the kernel's layout: %w", err)
	}
	return layout, nil
}
