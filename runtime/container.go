package runtime

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"

	_ "github.com/opencontainers/cgroups/devices" // without which no device rule is set
	"github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"golang.org/x/sys/unix"
)

// Container is a run's container. Its methods may be called at any time and
// from any goroutine.
type Container struct {
	thread    *thread
	container *libcontainer.Container
	process   *libcontainer.Process
	lifeline  *lifeline
	refuser   *refuser  // nil until the command can start
	terminal  *terminal // nil without one
	pid       int
	cgroup    string
	cleanup   undo // what Close does

	filtered chan error // says whether the refuser serves

	dead    chan struct{} // closed when no process is left
	ended   chan struct{} // closed then, when the output is written and these are set
	status  Status
	waitErr error

	closing sync.Mutex
}

// Create makes a run's container with everything in place but the command,
// which Start starts. On error nothing is left.
//
// The first process in it is its init, a copy of its own that the run sees
// read-only, so that nothing in the run ever holds a descriptor or a /proc link
// of the agent's program (CVE-2019-5736 and its kind).
func Create(cfg Config) (_ *Container, err error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	c := &Container{filtered: make(chan error, 1), dead: make(chan struct{}), ended: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("create container %s: %w", cfg.ID, err), c.cleanup.run())
		}
	}()
	if c.thread, err = newThread(); err != nil {
		return nil, err
	}
	c.cleanup.push(func() error { c.thread.end(); return nil })
	if err := c.thread.do(func() error { return c.create(&cfg) }); err != nil {
		return nil, err
	}
	if c.pid, err = c.process.Pid(); err != nil {
		return nil, fmt.Errorf("find the first process: %w", err)
	}
	// What observes the cgroup must observe the run.
	cgroup, err := unifiedPathOf(c.pid)
	if err == nil && cgroup != c.cgroup {
		err = fmt.Errorf("the first process is in %s, not in %s", cgroup, c.cgroup)
	}
	if err != nil {
		return nil, fmt.Errorf("find the cgroup: %w", err)
	}
	return c, nil
}

// create runs on the container's thread.
func (c *Container) create(cfg *Config) (err error) {
	v, err := newView(cfg)
	// Also what a view that failed has mounted and written.
	c.cleanup.push(func() error { return c.thread.do(emptyView(cfg.Folder).discard) })
	if err != nil {
		return err
	}
	filled := make(chan error, 1)
	go func() { filled <- v.fill() }()
	defer func() { err = errors.Join(err, <-filled) }()
	if c.cgroup, err = makeCgroup(cgroupName(cfg.ID)); err != nil {
		return err
	}
	c.cleanup.push(func() error {
		if err := os.Remove(c.cgroup); !errors.Is(err, os.ErrNotExist) { // libcontainer has removed it
			return err
		}
		return nil
	})
	if cfg.Cgroup != nil {
		cfg.Cgroup(c.cgroup)
	}
	if v.javaless {
		cfg.Env = withJavaStore(cfg.Env)
	}
	config, err := configure(cfg, v)
	if err != nil {
		return err
	}
	if c.container, err = libcontainer.Create(cfg.Live, containerID, config); err != nil {
		return err
	}
	c.cleanup.push(func() error { return c.thread.do(c.container.Destroy) })
	return c.begin(cfg)
}

// containerID is libcontainer's name for the one container in a live folder.
const containerID = "container"

// configure turns the specification into libcontainer's terms.
func configure(cfg *Config, v *view) (*configs.Config, error) {
	c, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{
		CgroupName: cgroupName(cfg.ID)[1:],
		Spec:       specification(cfg, v),
	})
	if err != nil {
		return nil, fmt.Errorf("convert the specification: %w", err)
	}
	// libcontainer lets a container make any device node, counting on the
	// cgroup to keep it from being opened inside. In the workspace it would
	// stay, open to the host's users. It also allows /dev/net/tun.
	c.Cgroups.Devices = slices.DeleteFunc(c.Cgroups.Devices, func(rule *config.Rule) bool {
		anyNode := rule.Permissions == "m"
		tun := rule.Type == config.CharDevice && rule.Major == 10 && rule.Minor == 200
		return rule.Allow && (anyNode || tun)
	})
	c.Devices = nil // they are in the tree
	return c, nil
}

// begin starts the container's first process, which waits for Start.
func (c *Container) begin(cfg *Config) error {
	line, inner, err := newLifeline()
	if err != nil {
		return err
	}
	defer inner.Close()
	c.lifeline = line
	c.cleanup.push(line.Close)
	// While the first process starts, which takes much longer.
	var known callTables
	sent := make(chan error, 1)
	go func() {
		known = readCallTables()
		filter, err := compileFilter(known)
		if err == nil {
			err = line.sendFilter(filter)
		}
		sent <- err
	}()
	c.process = &libcontainer.Process{
		Init:       true,
		Args:       specification(cfg, &view{}).Process.Args,
		Env:        cfg.Env,
		Cwd:        cfg.Workspace,
		Rlimits:    rlimits(cfg.Limits),
		ExtraFiles: []*os.File{inner},
	}
	if cfg.Terminal {
		console, err := newTerminal(cfg, c.process)
		if err != nil {
			return err
		}
		defer c.process.ConsoleSocket.Close()
		c.terminal = console
		c.cleanup.push(console.Close)
	} else {
		// The streams go by beside init's own stdio, for libcontainer would give
		// the files behind that another owner.
		files, opened, err := streams(cfg.Stdin, cfg.Stdout, cfg.Stderr)
		defer func() { _ = opened.run() }() // they were only read from
		if err != nil {
			return err
		}
		c.process.ExtraFiles = append(c.process.ExtraFiles, files...)
	}
	if err := errors.Join(c.startProcess(), <-sent); err != nil {
		return err
	}
	inner.Close()
	events := make(chan struct{})
	go func() {
		defer close(events)
		c.filtered <- c.serveFilter(known, cfg.Refused)
		c.lifeline.listen(c.stopped)
	}()
	go c.watch(events)
	c.cleanup.push(c.Kill)
	if c.terminal != nil {
		return c.terminal.connect()
	}
	return nil
}

// startProcess starts the first process, for which libcontainer takes this variable
// from us. It has Go use one processor anyway, but only when that has prepared for all.
func (c *Container) startProcess() error {
	const processors = "GOMAXPROCS"
	if os.Getenv(processors) == "" {
		if err := os.Setenv(processors, "1"); err != nil {
			return err
		}
		defer func() { _ = os.Unsetenv(processors) }() // never fails
	}
	return c.container.Start(c.process)
}

// serveFilter waits until init has put the filter on, and starts to serve it.
func (c *Container) serveFilter(known callTables, record func(Refusal) error) error {
	fd, err := c.lifeline.takeFilter()
	if err != nil {
		return err
	}
	c.refuser, err = serveFilter(fd, known, record, func() {
		_ = c.process.Signal(unix.SIGKILL) // it may have ended
	})
	return err
}

// streams replaces files that are not there by /dev/null.
func streams(files ...*os.File) ([]*os.File, *undo, error) {
	opened := &undo{}
	for i, file := range files {
		if file != nil {
			continue
		}
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return nil, opened, err
		}
		opened.push(null.Close)
		files[i] = null
	}
	return files, opened, nil
}

// watch waits for the end of the first process and of what it had to say.
func (c *Container) watch(events <-chan struct{}) {
	state, err := c.process.Wait()
	<-events
	var unanswered error
	if c.refuser != nil {
		unanswered = c.refuser.stop()
	}
	close(c.dead)
	if c.terminal != nil {
		c.terminal.drain()
	}
	switch {
	case unanswered != nil:
		c.waitErr = unanswered
	case state != nil:
		c.status = statusOf(state.Sys().(syscall.WaitStatus), c.lifeline.killed)
	default:
		c.waitErr = fmt.Errorf("wait for the first process: %w", err)
	}
	close(c.ended)
}

// statusOf is how the command ended, from how init did and what it told before.
func statusOf(init syscall.WaitStatus, killed syscall.Signal) Status {
	switch {
	case init.Signaled():
		return Status{Code: 128 + int(init.Signal()), Signal: init.Signal()}
	case killed != 0:
		return Status{Code: 128 + int(killed), Signal: killed}
	}
	return Status{Code: init.ExitStatus()}
}

// PID is the container's first process, in the host's numbers.
func (c *Container) PID() int { return c.pid }

// Start lets the command go. When it returns, the filter of its system calls is
// served.
func (c *Container) Start() error {
	c.closing.Lock()
	defer c.closing.Unlock()
	if len(c.cleanup) == 0 {
		return errors.New("start the command: the container is closed")
	}
	if c.terminal != nil {
		if err := c.terminal.start(); err != nil {
			return fmt.Errorf("start the command: %w", err)
		}
	}
	if err := c.thread.do(c.container.Exec); err != nil {
		return fmt.Errorf("start the command: %w", err)
	}
	if err := <-c.filtered; err != nil {
		return fmt.Errorf("start the command: %w", err)
	}
	return nil
}

// Wait waits until the command, and with it everything else in the container,
// has ended and all of its output is written. It may be called repeatedly.
func (c *Container) Wait() (Status, error) {
	<-c.ended
	return c.status, c.waitErr
}

// Signal passes a signal to the command. One that comes before the command has
// started waits for it. After its end the error is os.ErrProcessDone.
func (c *Container) Signal(s os.Signal) error {
	number, ok := s.(syscall.Signal)
	if !ok || number < 1 || number > 64 {
		return fmt.Errorf("signal %v: the kernel has no such signal", s)
	}
	select {
	case <-c.dead:
		return os.ErrProcessDone
	default:
	}
	return c.lifeline.send(number)
}

// Resize sets the size, in characters, of the container's terminal.
func (c *Container) Resize(width, height uint16) error {
	if c.terminal == nil {
		return errors.New("resize the terminal: the container has none")
	}
	return c.terminal.resize(width, height)
}

// Kill ends everything in the container at once, and waits until it has.
func (c *Container) Kill() error {
	select {
	case <-c.dead:
		return nil
	default:
	}
	if err := c.process.Signal(unix.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill the container: %w", err)
	}
	<-c.dead
	return nil
}

// Close ends what still runs in the container and removes every trace of it
// from the host, once the output of its terminal is written. It may be called
// again.
func (c *Container) Close() error {
	c.closing.Lock()
	defer c.closing.Unlock()
	if err := c.cleanup.run(); err != nil {
		return fmt.Errorf("close the container: %w", err)
	}
	return nil
}

// stopped is called when the command was stopped, as by ^Z.
func (c *Container) stopped() {
	if c.terminal == nil {
		return // who stopped it will continue it
	}
	c.terminal.suspend()
	_ = c.lifeline.send(unix.SIGCONT) // the command may have ended
}
