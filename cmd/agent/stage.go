package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"agentops/helper"
	"agentops/runtime"
	"agentops/test/escape/attempt"

	"golang.org/x/sys/unix"
)

// registration is a process that has said what it attempts.
type registration struct {
	profile string
	name    string
	pid     int // in the host's numbers
	at      time.Time
}

// stage is where the escape program is let act: an arena, state and a workspace
// of its own, and what the host has that a run must not have.
type stage struct {
	env        *env
	base       string // holds the rest
	work       string // the runs' workspace
	state      string
	secret     string
	paths      []string // secret paths that this host has something at
	kernel     attempt.Kernel
	canaries   []string
	sockets    []string
	abstract   string
	arena      *arena
	sightings  *sightings
	registrars []net.Listener

	mu            sync.Mutex
	registrations []registration
	serving       sync.WaitGroup
}

const escapeName = "escape"

// withoutRun is the profile of attempts that are made without a run.
const withoutRun = "none"

// newStage sets the stage.
func newStage(e *env) (_ *stage, err error) {
	s := &stage{env: e, sightings: &sightings{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	random := make([]byte, 16)
	rand.Read(random) // never fails
	s.secret = "secret-" + hex.EncodeToString(random)
	if s.base, err = os.MkdirTemp("", "agentops-selftest-"); err != nil {
		return nil, err
	}
	s.work, s.state = filepath.Join(s.base, "work"), filepath.Join(s.base, "state")
	// The ordinary user of a run must get to the workspace.
	if err := errors.Join(os.Chmod(s.base, 0o755), os.Mkdir(s.work, 0o755), os.Mkdir(s.state, 0o700)); err != nil {
		return nil, err
	}
	program, err := helper.Escape()
	if err != nil {
		return nil, err
	}
	image, err := io.ReadAll(program)
	if err == nil {
		err = os.WriteFile(filepath.Join(s.work, escapeName), image, 0o755)
	}
	if err != nil {
		return nil, err
	}
	if s.arena, err = newArena(s.sightings); err != nil {
		return nil, err
	}
	if err := s.plant(); err != nil {
		return nil, err
	}
	if err := s.examine(); err != nil {
		return nil, err
	}
	for _, p := range append(profiles(), profile{name: withoutRun}) {
		if err := s.prepare(p.name); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// prepare takes the registrations of those who attempt something in a profile, and
// writes for them what they have to know.
func (s *stage) prepare(profile string) error {
	path := filepath.Join(s.work, "register-"+profile)
	registrar, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	s.registrars = append(s.registrars, registrar)
	s.serving.Go(func() {
		for {
			conn, err := registrar.Accept()
			if err != nil {
				return
			}
			s.register(profile, conn.(*net.UnixConn))
			conn.Close()
		}
	})
	if err := os.Chmod(path, 0o777); err != nil {
		return err
	}
	return s.describe(profile, path)
}

// register takes one. The kernel says which process it is, in the host's numbers.
func (s *stage) register(profile string, conn *net.UnixConn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	var peer *unix.Ucred
	ctlErr := raw.Control(func(fd uintptr) {
		peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if ctlErr != nil || err != nil || conn.SetDeadline(time.Now().Add(time.Second)) != nil {
		return
	}
	name, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return
	}
	s.mu.Lock()
	s.registrations = append(s.registrations, registration{profile, strings.TrimSpace(name), int(peer.Pid), time.Now()})
	s.mu.Unlock()
	_, _ = conn.Write([]byte{'\n'}) // who is gone attempts nothing
}

// take returns the registrations since the last call.
func (s *stage) take() []registration {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.registrations
	s.registrations = nil
	return list
}

// canaryFolders are those of the host that a run has its own empty ones for.
var canaryFolders = []string{"/root", "/home", "/run", "/tmp", "/var/tmp", "/mnt", "/media"}

// plant puts on the host what no run may see: files, and unix sockets.
func (s *stage) plant() error {
	name := filepath.Base(s.base)
	for _, folder := range canaryFolders {
		path := filepath.Join(folder, "."+name)
		if info, err := os.Stat(folder); err != nil || !info.IsDir() {
			continue
		}
		if err := os.WriteFile(path, []byte(s.secret+"\n"), 0o644); err != nil {
			continue // a read-only one: nothing to be seen in it
		}
		s.canaries = append(s.canaries, path)
	}
	for _, folder := range []string{"/run", "/tmp", "/var/lib"} {
		path := filepath.Join(folder, name+".sock")
		if err := s.arena.canary(path, s.sightings); err != nil {
			continue
		}
		s.sockets = append(s.sockets, path)
	}
	if len(s.canaries) == 0 || len(s.sockets) == 0 {
		return errors.New("put a file and a socket on the host for runs to look for: no folder can be written")
	}
	s.abstract = name
	return s.arena.canary("@"+name, s.sightings)
}

// examine finds out what of the kernel and the host there is to attempt.
func (s *stage) examine() error {
	cmd := exec.Command(filepath.Join(s.work, escapeName), "-mode", "kernel")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	err := s.arena.start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err == nil {
		err = json.Unmarshal([]byte(out.String()), &s.kernel)
	}
	if err != nil {
		return fmt.Errorf("find out what the kernel has: %w", err)
	}
	for _, path := range attempt.SecretPaths {
		if hasContent(path) {
			s.paths = append(s.paths, path)
		}
	}
	return nil
}

// hasContent says whether there is something in a file or folder.
func hasContent(path string) bool {
	info, err := os.Stat(path)
	if err != nil {
		return false
	}
	if !info.IsDir() {
		return info.Size() > 0
	}
	entries, err := os.ReadDir(path)
	return err == nil && len(entries) > 0
}

// stageFile is where the escape program is told of the stage.
func (s *stage) stageFile(profile string) string {
	return filepath.Join(s.work, "stage-"+profile+".json")
}

func (s *stage) describe(profile, register string) error {
	d := attempt.Stage{
		Register: register,
		Host4:    arenaHost4.String(), Port: hostPort,
		Kernel: s.kernel, Paths: s.paths, Canaries: s.canaries, Secret: s.secret,
		PID: os.Getpid(), Abstract: s.abstract, Sockets: s.sockets, State: s.state,
	}
	if s.arena.host.IPv6() {
		d.Host6 = arenaHost6.String()
	}
	content, err := json.Marshal(d)
	if err != nil {
		return err
	}
	return os.WriteFile(s.stageFile(profile), content, 0o644)
}

// profile is a way in which the attempts are made.
type profile struct {
	name  string
	flags []string // of agent run
	args  []string // of the escape program
}

func profiles() []profile {
	list := []profile{
		{name: "root"},
		{name: "user", args: []string{"-uid", "65534"}},
	}
	all := profile{name: "capabilities"}
	for _, capability := range runtime.AddableCapabilities() {
		all.flags = append(all.flags, "--cap-add", capability)
	}
	return append(list, all)
}

// command is agent run with the escape program, on the stage.
func (s *stage) command(ctx context.Context, p profile, args ...string) *exec.Cmd {
	datagrams := ":" + strconv.Itoa(attempt.DatagramPort)
	run := []string{"run", "--name", p.name, "--quiet", "--strict", "--interactive=false",
		"--allow", attempt.Allowed, "--allow", "*." + attempt.Rebound,
		"--allow", "udp:" + attempt.Allowed + datagrams, "--allow", "udp:*." + attempt.Rebound + datagrams,
		"--resolve", attempt.Allowed + "=" + arenaOutside4.String()}
	run = append(append(run, p.flags...), "--", filepath.Join(s.work, escapeName), "-stage", s.stageFile(p.name))
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append(append(run, p.args...), args...)...)
	cmd.Args[0] = "agent"
	cmd.Dir = s.work
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8",
		"AGENTOPS_STATE_DIR=" + s.state, "AGENTOPS_RUN_DIR=" + filepath.Join(s.base, "run"),
		// An identity of the host's, which is none, and no run may have.
		"AWS_ACCESS_KEY_ID=AKIA" + s.secret, "AWS_SECRET_ACCESS_KEY=" + s.secret, "AWS_SESSION_TOKEN=" + s.secret,
		"AWS_EC2_METADATA_DISABLED=true", "SELFTEST_SECRET=" + s.secret,
	}
	// Ended, it takes its run with it.
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// plainCommand is the escape program as a process of the arena's host, without a
// run: what it sends must arrive, or nothing that does not proves anything.
func (s *stage) plainCommand(ctx context.Context) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(s.work, escapeName), "-stage", s.stageFile(withoutRun), "-plain")
	cmd.Dir = s.work
	cmd.Env = []string{}
	return cmd
}

// attempts runs a command of the escape program's and reads what it has to say.
func (s *stage) attempts(cmd *exec.Cmd) ([]attempt.Result, error) {
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := s.arena.start(cmd); err != nil {
		return nil, err
	}
	var results []attempt.Result
	lines := json.NewDecoder(stdout)
	for {
		var r attempt.Result
		if err := lines.Decode(&r); err != nil {
			break // its end, of which Wait says more
		}
		results = append(results, r)
	}
	if err := cmd.Wait(); err != nil {
		// What the agent finds wrong with its run is a finding of the test's.
		if x, ok := errors.AsType[*exec.ExitError](err); ok && x.ExitCode() == exitOurs && len(results) > 0 {
			return results, &runError{strings.TrimSpace(stderr.String())}
		}
		return results, fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return results, nil
}

// runError is what an agent had to say of its run when that was over.
type runError struct{ text string }

func (e *runError) Error() string { return e.text }

// close removes the stage from the host.
func (s *stage) close() error {
	var errs []error
	for _, registrar := range s.registrars {
		errs = append(errs, registrar.Close())
	}
	s.serving.Wait()
	if s.arena != nil {
		errs = append(errs, s.arena.close())
	}
	for _, path := range s.canaries {
		errs = append(errs, os.Remove(path))
	}
	if s.base != "" {
		// What a killed agent has left.
		sweepErr := runtime.Sweep(filepath.Join(s.base, "run"), func(runtime.Record) error { return nil })
		errs = append(errs, sweepErr, os.RemoveAll(s.base))
	}
	return errors.Join(errs...)
}
