package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func init() { Init() }

// initImage is the program that goes into every run, not a stand-in.
var initImage []byte

func TestMain(m *testing.M) {
	if role := os.Getenv("RUNTIME_TEST_ROLE"); role != "" {
		os.Exit(play(role))
	}
	var err error
	if initImage, err = os.ReadFile("../helper/init_" + runtime.GOARCH + ".elf"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func needRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root")
	}
}

// newNetwork makes a network namespace and returns its path and its inode.
func newNetwork(tb testing.TB) (string, uint64) {
	tb.Helper()
	type result struct {
		file *os.File
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		var file *os.File
		if err == nil {
			file, err = os.Open("/proc/thread-self/ns/net")
		}
		done <- result{file, err}
	}()
	r := <-done
	if r.err != nil {
		tb.Fatal(r.err)
	}
	tb.Cleanup(func() { r.file.Close() })
	var st unix.Stat_t
	if err := unix.Fstat(int(r.file.Fd()), &st); err != nil {
		tb.Fatal(err)
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), r.file.Fd()), st.Ino
}

// newConfig is a run of the host's view in folders of the test's own.
func newConfig(tb testing.TB, command ...string) Config {
	tb.Helper()
	needRoot(tb)
	state := tb.TempDir()
	network, _ := newNetwork(tb)
	workspace := tb.TempDir()
	id := fmt.Sprintf("test-%d-%s", os.Getpid(), filepath.Base(filepath.Dir(state))+filepath.Base(state))
	return Config{
		ID:         id,
		Folder:     state,
		Live:       filepath.Join(tb.TempDir(), "live"),
		Network:    network,
		Workspace:  workspace,
		Command:    command,
		Env:        []string{"PATH=" + standardPath, "HOME=/root"},
		Hostname:   "test-run",
		Init:       initImage,
		ResolvConf: []byte("nameserver 198.18.0.1\n"),
		Hosts:      []byte("127.0.0.1 localhost\n"),
		Bundle:     []byte("the bundle\n"),
		Files:      map[string]File{"aws/config": {Content: []byte("[default]\n")}, "token": {Content: []byte("secret"), Mode: 0o400}},
	}
}

// runConfig runs a command to its end and returns what it wrote to stdout and
// stderr.
func runConfig(tb testing.TB, cfg Config) (Status, string) {
	tb.Helper()
	output, err := os.CreateTemp(tb.TempDir(), "output")
	if err != nil {
		tb.Fatal(err)
	}
	defer output.Close()
	if cfg.Stdout == nil {
		cfg.Stdout = output
	}
	if cfg.Stderr == nil {
		cfg.Stderr = output
	}
	c, err := Create(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			tb.Error(err)
		}
	}()
	if err := c.Start(); err != nil {
		tb.Fatal(err)
	}
	status, err := c.Wait()
	if err != nil {
		tb.Fatal(err)
	}
	content, err := os.ReadFile(output.Name())
	if err != nil {
		tb.Fatal(err)
	}
	return status, string(content)
}

// shell runs a script in the host's view.
func shell(tb testing.TB, script string) (Status, string) {
	tb.Helper()
	return runConfig(tb, newConfig(tb, "sh", "-c", script))
}

// leftovers lists what a run may have left on the host.
func leftovers(tb testing.TB, cfg Config) []string {
	tb.Helper()
	var left []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, cfg.Folder) || strings.Contains(line, cfg.Live) {
			left = append(left, "mount "+line)
		}
	}
	cgroupMounts, err := listCgroupMounts()
	if err != nil {
		tb.Fatal(err)
	}
	for _, point := range hierarchies(cgroupMounts) {
		if folder := filepath.Join(point, cgroupName(cfg.ID)); isDir(folder) {
			left = append(left, "cgroup "+folder)
		}
	}
	for _, pattern := range []string{cfg.Folder + "/*", cfg.Live + "/*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			tb.Fatal(err)
		}
		left = append(left, found...)
	}
	return left
}
