package runtime

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckWorkspace(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(dir, "state")
	project := filepath.Join(dir, "project")
	for _, path := range []string{filepath.Join(state, "runs"), filepath.Join(project, "sub")} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"to-etc": "/etc", "to-project": project, "to-nothing": "/no/such"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(dir+"/file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		project:             project,
		project + "/sub/..": project,
		dir + "/to-project": project,
	} {
		if got, err := NewChecker(state).Workspace(path); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", path, got, err, want)
		}
	}
	for path, want := range map[string]string{
		"/":                 "the whole host",
		"/etc":              "the host's",
		"/usr":              "the host's",
		"/usr/../etc":       "the host's",
		"/bin":              "the host's",
		"/proc":             "the host's",
		"/proc/self":        "in /proc",
		"/sys/kernel":       "in /sys",
		"/dev/shm":          "in /dev",
		"/run":              "the host's",
		"/tmp":              "the host's",
		"/var":              "the host's",
		"/home":             "the host's",
		"/root":             "the host's",
		"/var/lib":          "the host's",
		"/etc/ssl":          "which runs must not see",
		state:               "which runs must not see",
		state + "/runs":     "which runs must not see",
		dir:                 "which runs must not see",
		dir + "/to-etc":     "the host's",
		dir + "/to-nothing": "no such file",
		dir + "/none":       "no such file",
		dir + "/file":       "not a folder",
		"relative":          "must be absolute",
		"":                  "must be absolute",
	} {
		if got, err := NewChecker(state).Workspace(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v; want %q", path, got, err, want)
		}
	}
}

func TestCheckWorkspaceHomes(t *testing.T) {
	for _, home := range homes() {
		if !isDir(home) {
			continue
		}
		if _, err := NewChecker().Workspace(home); err == nil {
			t.Errorf("the home folder %s can be a workspace", home)
		}
	}
	if err := NewChecker().exposes("/root/project"); err != nil {
		t.Errorf("a project in a home: %v", err)
	}
	if err := NewChecker().exposes("/root/.aws"); err == nil {
		t.Error("/root/.aws can be a workspace")
	}
}

func TestCheckMount(t *testing.T) {
	dir := t.TempDir()
	listener, err := net.Listen("unix", dir+"/socket")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := os.WriteFile(dir+"/file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, m := range []Mount{{Source: dir, Destination: "/data"}, {Source: dir + "/file", Destination: "/etc/x", ReadOnly: true}} {
		if got, err := NewChecker().Mount(m); err != nil || got != m {
			t.Errorf("%+v: %+v, %v", m, got, err)
		}
	}
	engine := filepath.Join(t.TempDir(), "engine")
	if err := os.Mkdir(engine, 0o755); err != nil {
		t.Fatal(err)
	}
	docker, err := net.Listen("unix", engine+"/docker.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer docker.Close()
	state := t.TempDir()
	for _, test := range []struct {
		mount Mount
		why   string
	}{
		{Mount{"/", "/host", true}, "the run would have the whole host"},
		{Mount{"/proc", "/x", true}, "is or holds /proc, which is the host's"},
		{Mount{"/proc/self", "/x", true}, "is in /proc, which is the host's"},
		{Mount{"/sys", "/x", true}, "is or holds /sys, which is the host's"},
		{Mount{"/run", "/x", true}, "is or holds /run, which is the host's"},
		{Mount{"/var/run", "/x", true}, "is or holds /run, which is the host's"},
		{Mount{"/etc", "/x", true}, "is or holds /etc, which is the host's"},
		{Mount{"/etc/shadow", "/x", true}, "which runs must not see"},
		{Mount{"/dev/null", "/x", true}, "is in /dev, which is the host's"},
		{Mount{state, "/x", true}, "which runs must not see"},
		{Mount{filepath.Dir(state), "/x", true}, "which runs must not see"},
		{Mount{dir + "/socket", "/socket", false}, "neither a folder nor a regular file"},
		{Mount{engine + "/docker.sock", "/x", true}, "gives the host to who can write to it"},
		{Mount{engine, "/x", true}, "gives the host to who can write to it"},
		{Mount{filepath.Dir(engine), "/x", true}, "gives the host to who can write to it"},
		{Mount{dir + "/none", "/x", true}, "no such file"},
		{Mount{dir, "data", false}, "must be absolute"},
		{Mount{dir, "", false}, "must be absolute"},
		{Mount{dir, "/", false}, "the run has its own there"},
		{Mount{dir, "/proc/sys", false}, "the run has its own there"},
		{Mount{dir, "/agentops", false}, "the run has its own there"},
		{Mount{dir, "/data/../agentops/aws", false}, "the run has its own there"},
		{Mount{dir, "/dev", false}, "the run has its own there"},
	} {
		if got, err := NewChecker(state).Mount(test.mount); err == nil || !strings.Contains(err.Error(), test.why) {
			t.Errorf("%+v: %+v, %v; want %q", test.mount, got, err, test.why)
		}
	}
}

func TestEnviron(t *testing.T) {
	host := []string{
		"PATH=/opt/bin:/bin", "LANG=C.UTF-8", "LC_ALL=C", "TERM=xterm", "TZ=UTC", "SHELL=/bin/zsh", "USER=alice", "HOME=/home/alice",
		"AWS_ACCESS_KEY_ID=AKIA", "AWS_REGION=eu-west-1", "GITHUB_TOKEN=x", "SSH_AUTH_SOCK=/x", "LD_PRELOAD=/x", "MINE=yes",
	}
	env, err := Environ(host, "", []string{"AWS_CONFIG_FILE=/agentops/aws/config", "AWS_REGION=eu-west-1"},
		[]string{"MINE", "ABSENT", "NEW=a=b", "AWS_REGION=us-east-1", "CURL_CA_BUNDLE=/own", "EMPTY="})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"PATH": "/opt/bin:/bin", "LANG": "C.UTF-8", "LC_ALL": "C", "TERM": "xterm", "TZ": "UTC", "SHELL": "/bin/zsh",
		"USER": "root", "LOGNAME": "root", "HOME": "/root", "MINE": "yes", "NEW": "a=b", "EMPTY": "",
		"AWS_CONFIG_FILE": "/agentops/aws/config", "AWS_REGION": "us-east-1", "CURL_CA_BUNDLE": "/own",
	}
	for _, name := range trustVariables {
		if want[name] == "" {
			want[name] = BundlePath
		}
	}
	got := variables(env)
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s is %q, want %q", name, got[name], value)
		}
	}
	if len(got) != len(want) || len(env) != len(want) {
		t.Errorf("%d variables, want %d: %q", len(env), len(want), env)
	}
	env, err = Environ(host, "/some/tree", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := variables(env); got["PATH"] != standardPath || got["SHELL"] != "" {
		t.Errorf("of the host's folders, a tree is given %q", env)
	}
	for _, name := range append(refusedVariables, "", "=x", "A\x00=b") {
		for _, entry := range []string{name, name + "=x"} {
			if _, err := Environ(host, "", nil, []string{entry}); err == nil {
				t.Errorf("variable %q was taken", entry)
			}
		}
	}
}
