// Package test runs the agent as its users do: the scripts in testdata/script are
// its behaviour, written down.
package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// agentPath is the binary that make builds.
func agentPath(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../agent")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run make", err)
	}
	return path
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// baseEnv is the environment of everything that is started: no credentials, no
// metadata service, state of its own.
func baseEnv(state string) []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LANG=C.UTF-8",
		"AGENTOPS_STATE_DIR=" + filepath.Join(state, "state"),
		"AGENTOPS_RUN_DIR=" + filepath.Join(state, "run"),
		"AWS_EC2_METADATA_DISABLED=true",
		"AWS_CONFIG_FILE=" + filepath.Join(state, "no-aws-config"),
		"AWS_SHARED_CREDENTIALS_FILE=" + filepath.Join(state, "no-aws-credentials"),
	}
}

func TestScripts(t *testing.T) {
	needRoot(t)
	agent := agentPath(t)
	commands, err := filepath.Abs("testdata/bin")
	if err != nil {
		t.Fatal(err)
	}
	client := filepath.Join(t.TempDir(), "client")
	build := exec.Command("go", "build", "-o", client, "./testdata/client")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build a client: %v\n%s", err, out)
	}
	site := newOutside(t)
	_, awsEnv := newAWS(t, 0)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			state, err := os.MkdirTemp("", "agentops-test-")
			if err != nil {
				return err
			}
			env.Defer(func() { os.RemoveAll(state) })
			for _, entry := range append(baseEnv(state), awsEnv...) {
				name, value, _ := strings.Cut(entry, "=")
				env.Setenv(name, value)
			}
			env.Setenv("PATH", filepath.Dir(agent)+":"+commands+":"+env.Getenv("PATH"))
			env.Setenv("STATE", state)
			env.Setenv("CLIENT", client)
			env.Setenv("CA", site.ca)
			env.Setenv("TLS", site.tls)
			env.Setenv("PLAIN", site.plain)
			env.Setenv("UDP", site.udp)
			return nil
		},
	})
}
