package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Twenty runs at once, each with a policy of its own: each reaches its own host,
// is refused its neighbour's, and has nothing of the others in its audit.
func TestTwentyRunsDoNotSeeOneAnother(t *testing.T) {
	needRoot(t)
	agent := agentPath(t)
	site := newOutside(t)
	state := t.TempDir()
	env := baseEnv(state)
	const runs = 20
	output := func(name string, args ...string) (string, error) {
		cmd := exec.Command(agent, args...)
		cmd.Env = env
		cmd.Dir = filepath.Join(state, name) // its workspace
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	var wg sync.WaitGroup
	for i := range runs {
		name := fmt.Sprintf("run-%d", i)
		if err := os.Mkdir(filepath.Join(state, name), 0o755); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			own, other := fmt.Sprintf("own-%d.example", i), fmt.Sprintf("own-%d.example", (i+1)%runs)
			script := fmt.Sprintf("curl -sS https://%s/; curl -sS https://%s/; hostname; ls /tmp", own, other)
			out, err := output(name, "run", "--name", name, "--strict", "--allow", own, "--upstream-ca", site.ca, "--resolve", "*="+site.tls, "--", "sh", "-c", script)
			if err != nil {
				t.Errorf("%s: %v\n%s", name, err, out)
			}
			for _, want := range []string{"hello from " + own, "no rule allows " + other, name + "\n"} {
				if !strings.Contains(out, want) {
					t.Errorf("%s: %q is not in\n%s", name, want, out)
				}
			}
		})
	}
	wg.Wait()
	for i := range runs {
		name := fmt.Sprintf("run-%d", i)
		out, err := output(name, "audit", name)
		if err != nil {
			t.Errorf("audit %s: %v\n%s", name, err, out)
		}
		for j := range runs {
			host, seen := fmt.Sprintf("own-%d.example:", j), j == i || j == (i+1)%runs
			if strings.Contains(out, host) != seen {
				t.Errorf("%s in the audit of %s is %v, want %v", host, name, !seen, seen)
			}
		}
	}
}
