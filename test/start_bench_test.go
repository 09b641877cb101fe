package test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// What a run adds to the start of a container: both run the same static program
// in the same tree. Compare the two in one go; the machine's mood is in both.
func BenchmarkStart(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	bundle, state := b.TempDir(), b.TempDir()
	rootfs := filepath.Join(bundle, "rootfs")
	for _, dir := range []string{rootfs, filepath.Join(rootfs, "proc"), filepath.Join(rootfs, "dev"), filepath.Join(rootfs, "sys"), filepath.Join(bundle, "workspace")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			b.Fatal(err)
		}
	}
	gcc := exec.Command("gcc", "-static", "-x", "c", "-o", filepath.Join(rootfs, "true"), "-")
	stdin, err := gcc.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := gcc.Start(); err != nil {
		b.Fatal(err)
	}
	stdin.Write([]byte("int main(void) { return 0; }\n"))
	stdin.Close()
	if err := gcc.Wait(); err != nil {
		b.Fatal(err)
	}
	writeBundle(b, bundle)
	b.Run("agent", func(b *testing.B) {
		agent, err := filepath.Abs("../agent")
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			cmd := exec.Command(agent, "run", "--quiet", "--rootfs", rootfs, "--", "/true")
			cmd.Dir, cmd.Env = filepath.Join(bundle, "workspace"), baseEnv(state)
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Fatalf("%v\n%s", err, out)
			}
		}
	})
	b.Run("runc", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			cmd := exec.Command("runc", "--root", filepath.Join(state, "runc"), "run", "--bundle", bundle, "agentops-bench-"+strconv.Itoa(i))
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Fatalf("%v\n%s", err, out)
			}
		}
	})
}

// writeBundle makes runc's own example run /true.
func writeBundle(b *testing.B, bundle string) {
	b.Helper()
	if out, err := exec.Command("runc", "spec", "--bundle", bundle).CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	path := filepath.Join(bundle, "config.json")
	content, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	var spec map[string]any
	if err := json.Unmarshal(content, &spec); err != nil {
		b.Fatal(err)
	}
	process := spec["process"].(map[string]any)
	process["terminal"], process["args"] = false, []string{"/true"}
	if content, err = json.Marshal(spec); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		b.Fatal(err)
	}
}
