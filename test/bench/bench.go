package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// bench is where all measurements take place: a folder of its own, and servers that
// run until it is closed.
type bench struct {
	ctx     context.Context
	quick   bool
	machine Machine
	agent   string // the binary that is measured
	noaudit string // the same, without journals
	folder  string // everything that is written
	work    string // the workspace of runs; in it, this program
	self    string // this program, for clients in a run
	origin  *origin
	nginx   *nginxServer
	undo    []func() error // the last acquired first
}

// newBench makes the folder and starts the origin.
func newBench(ctx context.Context, agent string, quick bool) (_ *bench, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the benchmark makes namespaces and loads eBPF: run it as root")
	}
	b := &bench{ctx: ctx, quick: quick}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.agent, err = filepath.Abs(agent); err != nil {
		return nil, err
	}
	b.noaudit = filepath.Join(filepath.Dir(b.agent), "bin", "agent-noaudit")
	if b.folder, err = os.MkdirTemp("", "agentops-bench-"); err != nil {
		return nil, err
	}
	b.undo = append(b.undo, func() error { return os.RemoveAll(b.folder) })
	b.work = filepath.Join(b.folder, "work")
	b.self = filepath.Join(b.work, "bench")
	if err := os.Mkdir(b.work, 0o755); err != nil {
		return nil, err
	}
	if err := copySelf(b.self); err != nil {
		return nil, err
	}
	// For thousands of connections; what is started inherits it.
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return nil, err
	}
	files.Cur = files.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return nil, err
	}
	if err := b.checkBuilds(); err != nil {
		return nil, err
	}
	b.undo = append(b.undo, b.sweep)
	if b.machine, err = b.describeMachine(); err != nil {
		return nil, err
	}
	b.origin, err = b.startOrigin()
	return b, err
}

// close ends what was started and removes the folder.
func (b *bench) close() error {
	var errs []error
	for _, undo := range slices.Backward(b.undo) {
		errs = append(errs, undo())
	}
	return errors.Join(errs...)
}

func copySelf(to string) error {
	path, err := os.Executable()
	if err != nil {
		return err
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o755)
}

// checkBuilds sees that the binary that is measured keeps journals, and that the
// other one does not.
func (b *bench) checkBuilds() error {
	for path, without := range map[string]bool{b.agent: false, b.noaudit: true} {
		out, err := b.output(exec.CommandContext(b.ctx, path, "version"))
		if err != nil {
			return err
		}
		if strings.Contains(out, "noaudit") != without {
			return fmt.Errorf("%s is the wrong build: %s", filepath.Base(path), strings.TrimSpace(out))
		}
	}
	return nil
}

// sweep lets one more run remove what agents that were interrupted have left.
func (b *bench) sweep() error {
	if b.ctx.Err() == nil {
		return nil
	}
	last := b.uninterrupted()
	_, err := last.output(last.command(b.agent, "run", "--quiet", "--", "true"))
	return err
}

// uninterrupted is the bench for what is done after an interrupt as well.
func (b *bench) uninterrupted() *bench {
	last := *b
	last.ctx = context.WithoutCancel(b.ctx)
	return &last
}

// rounds is how often contenders take turns.
func (b *bench) rounds(full int) int {
	if b.quick {
		return 2
	}
	return full
}

// seconds is how long one measurement takes.
func (b *bench) seconds(full int) int {
	if b.quick {
		return 1
	}
	return full
}

// env is the environment of all that is started: no credentials, no metadata
// service, state of its own.
func (b *bench) env() []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LANG=C.UTF-8",
		"AGENTOPS_STATE_DIR=" + filepath.Join(b.folder, "state"),
		"AGENTOPS_RUN_DIR=" + filepath.Join(b.folder, "run"),
		"AWS_EC2_METADATA_DISABLED=true",
		"AWS_CONFIG_FILE=" + filepath.Join(b.folder, "none"),
		"AWS_SHARED_CREDENTIALS_FILE=" + filepath.Join(b.folder, "none"),
	}
}

// command is a program in the bench's environment, which ends with the bench.
func (b *bench) command(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(b.ctx, name, args...)
	cmd.Env, cmd.Dir = b.env(), b.work
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// inRun is a command in a run whose every name is the origin, but opaque.test and
// stream.test, which are servers that speak nothing known.
func (b *bench) inRun(flags []string, command ...string) *exec.Cmd {
	args := []string{"run", "--quiet", "--upstream-ca", b.origin.ca,
		"--resolve", "opaque.test=" + b.origin.opaque, "--resolve", "stream.test=" + b.origin.stream, "--resolve", "*=" + b.origin.address}
	args = append(append(args, flags...), "--")
	return b.command(b.agent, append(args, command...)...)
}

// client is one of this program's clients in a run, or on the host.
func (b *bench) client(inRun bool, args ...string) *exec.Cmd {
	args = append([]string{"client"}, args...)
	if inRun {
		return b.inRun(nil, append([]string{b.self}, args...)...)
	}
	return b.command(b.self, args...)
}

// output runs a command to its end and returns what it has printed.
func (b *bench) output(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s%s", strings.Join(cmd.Args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// serve starts a server that runs until the bench is closed, and returns when it
// takes connections.
func (b *bench) serve(address, name string, args ...string) (*exec.Cmd, error) {
	cmd := b.command(name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	b.undo = append(b.undo, func() error {
		_ = cmd.Process.Signal(unix.SIGTERM) // or it has ended
		if err := <-exited; cmd.ProcessState == nil {
			return err
		}
		return nil
	})
	for deadline := time.Now().Add(20 * time.Second); ; {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			return cmd, nil
		}
		select {
		case err := <-exited:
			exited <- err
			return nil, fmt.Errorf("%s has ended, %s:\n%s", name, cmd.ProcessState, out.String())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%s does not listen on %s: %w", name, address, err)
		}
	}
}

// live is a command that goes on until its stdin ends.
type live struct {
	cmd   *exec.Cmd
	stdin io.Closer
	said  bytes.Buffer // on stderr
}

// goLive starts a command and returns when it has printed its first byte.
func goLive(cmd *exec.Cmd) (*live, error) {
	l := &live{cmd: cmd}
	cmd.Stderr = &l.said
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	l.stdin = stdin
	if _, err := stdout.Read(make([]byte, 16)); err != nil {
		return nil, fmt.Errorf("%s: it did not get ready: %w", strings.Join(cmd.Args, " "), errors.Join(err, l.end()))
	}
	return l, nil
}

func (l *live) end() error {
	l.stdin.Close()
	if err := l.cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(l.cmd.Args, " "), err, l.said.String())
	}
	return nil
}

// freePort is an address on loopback that nobody listens on.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
