package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"agentops/audit"
	"agentops/test/escape/attempt"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

const selftestTimeout = 2 * time.Minute

func newSelftestCommand(e *env) *cobra.Command {
	var asJSON bool
	var only []string
	var output string
	cmd := &cobra.Command{
		Use:   "selftest",
		Short: "Attack runs on this host, and show that nothing escapes",
		Long: `Start runs in which everything is tried to get past what bounds a run, as root,
as an ordinary user, and with every capability that can be added; and see that
nothing arrives outside, that each attempt is refused at once, and that the
journal names its process. The outside is a network namespace: nothing is sent
to a real network, whatever comes of it.

The exit code is 1 when something has escaped, was refused late, or is in no
record. A report is written, signed with this host's audit key.`,
		Example: `  agent selftest
  agent selftest --only family,host
  agent selftest verify selftest-20261124-101500.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, class := range only {
				if !slices.Contains(attempt.Classes, class) {
					return withHint(fmt.Errorf("there is no class %q", class), "did you mean %q? The classes are %s",
						nearest(class, attempt.Classes), strings.Join(attempt.Classes, ", "))
				}
			}
			if e.uid != 0 {
				return withHint(errors.New("agent selftest needs root: it makes namespaces and runs"), "sudo agent selftest")
			}
			return e.selftest(cmd.Context(), only, output, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report, one JSON object")
	cmd.Flags().StringSliceVar(&only, "only", nil, "make the attempts of these `CLASSES` alone")
	cmd.Flags().StringVarP(&output, "output", "o", "", "write the signed report to `FILE` (default: in the state folder)")
	cmd.AddCommand(newSelftestVerifyCommand(e))
	return cmd
}

// selftest attacks runs and tells how it went.
func (e *env) selftest(ctx context.Context, only []string, output string, asJSON bool) (err error) {
	ctx, cancel := context.WithTimeout(ctx, selftestTimeout)
	defer cancel()
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	defer stop()
	key, err := e.auditKey() // before all the work
	if err != nil {
		return err
	}
	began := time.Now()
	s, err := newStage(e)
	if err != nil {
		return fmt.Errorf("set the stage: %w", err)
	}
	defer func() {
		if closeErr := s.close(); closeErr != nil {
			err = errors.Join(err, fmt.Errorf("clear the stage: %w", closeErr))
		}
	}()
	report, err := s.test(ctx, only)
	if err != nil {
		return err
	}
	host, _ := os.Hostname() // reported empty
	report.Schema, report.Agent, report.Kernel, report.Host = reportSchema, version, kernelRelease(), host
	report.Time, report.DurationMS = began.UTC().Format(time.RFC3339), time.Since(began).Milliseconds()
	report.total()
	if output == "" {
		output = filepath.Join(e.stateDir(), "selftest", "selftest-"+began.UTC().Format("20060102-150405")+".json")
	}
	signed, err := signReport(report, key)
	if err == nil {
		err = writeReport(output, signed)
	}
	if err != nil {
		return err
	}
	if asJSON {
		err = json.NewEncoder(e.stdout).Encode(report)
	} else {
		err = printReport(e.stdout, report, output)
	}
	if err == nil && !report.Passed {
		err = &exitError{code: 1}
	}
	return err
}

// test makes the attempts and judges them.
func (s *stage) test(ctx context.Context, only []string) (*selftestReport, error) {
	report := &selftestReport{Only: only}
	before := s.hostState()
	if err := s.control(ctx, report); err != nil {
		return nil, err
	}
	var filter []string
	if len(only) > 0 {
		filter = []string{"-only", strings.Join(only, ",")}
	}
	// All at once: the time goes into starting processes.
	type outcome struct {
		results []attempt.Result
		err     error
	}
	all := profiles()
	outcomes := make([]outcome, len(all))
	var running sync.WaitGroup
	for i, p := range all {
		running.Go(func() { outcomes[i].results, outcomes[i].err = s.attempts(s.command(ctx, p, filter...)) })
	}
	running.Wait()
	registered := s.take()
	report.check("no process outlives its run", outlived(registered))
	for i, p := range all {
		results, err := outcomes[i].results, outcomes[i].err
		if _, ok := errors.AsType[*runError](err); err != nil && !ok {
			return nil, fmt.Errorf("the run as %s: %w", p.name, err)
		}
		report.check("the run as "+p.name, err)
		journal, err := s.journal(p.name)
		if err != nil {
			return nil, err
		}
		report.check("the journal of the run as "+p.name, journal.problem())
		report.Attempts = append(report.Attempts, judgeAttempts(p.name, results, registered, journal)...)
	}
	s.settle()
	report.see(s.sightings.take(), registered)
	if len(only) == 0 || slices.Contains(only, "time") {
		s.interrupt(ctx, report)
	}
	report.check("the host's files", s.compare(before))
	lost, err := s.arena.watch.lost()
	if err == nil && lost > 0 {
		err = fmt.Errorf("%d frames were not seen", lost)
	}
	report.check("everything that arrived outside was seen", err)
	return report, nil
}

// mustArrive are the attempts that anything on a host can make: if these are not
// seen outside when there is no run, then nothing is proven by their absence.
var mustArrive = []string{"public-https", "private-10", "udp", "udp-quic", "sendmmsg", "fastopen-send", "dns-outside", "meta-ec2"}

// control makes the attempts without a run, on the arena's host.
func (s *stage) control(ctx context.Context, report *selftestReport) error {
	results, err := s.attempts(s.plainCommand(ctx))
	if err != nil {
		return fmt.Errorf("make the attempts without a run: %w", err)
	}
	s.settle()
	registered := s.take()
	seen := s.sightings.take()
	attribute(seen, registered)
	report.Control.Attempts = len(registered)
	for _, r := range results {
		if slices.ContainsFunc(seen, func(one sighting) bool { return one.Attempt == r.Name }) || r.Outcome == attempt.Reached {
			report.Control.Escaped = append(report.Control.Escaped, r.Name)
		}
	}
	for _, name := range mustArrive {
		if !slices.Contains(report.Control.Escaped, name) {
			err = errors.Join(err, fmt.Errorf("%s did not arrive outside though it was made without a run", name))
		}
	}
	report.check("what is sent without a run arrives outside", err)
	return nil
}

// settle waits for what is on its way: the watch has it when a frame of ours,
// sent after all others, has come by.
func (s *stage) settle() {
	const tries = 50
	seen := s.arena.watch.control.Load()
	for range tries {
		_ = s.arena.host.Do(func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Connect(fd, &unix.SockaddrInet4{Port: 443, Addr: arenaOutside4.As4()}) // refused
		})
		if s.arena.watch.control.Load() > seen {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// outlived says which of a finished run's processes are still there.
func outlived(registered []registration) error {
	for _, r := range registered {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", r.pid))
		if err == nil && strings.HasPrefix(string(comm), r.name[:min(15, len(r.name))]) {
			return fmt.Errorf("process %d, of the attempt %s, is still there", r.pid, r.name)
		}
	}
	return nil
}

// interrupt kills an agent, and stops one, while its run sends for all it is
// worth.
func (s *stage) interrupt(ctx context.Context, report *selftestReport) {
	linger := func(name string, act func(agent *os.Process, pid int) error) {
		cmd := s.command(ctx, profile{name: "root", args: []string{"-mode", "linger"}})
		err := s.untilLingers(cmd)
		registered := s.take()
		if err == nil && len(registered) == 0 {
			err = errors.New("its process has not registered")
		}
		result := judged{Profile: "root", Result: attempt.Result{Name: name, Class: "time", Outcome: attempt.Blocked, Detail: "nothing left"}}
		if err == nil {
			result.HostPID = registered[0].pid
			err = act(cmd.Process, result.HostPID)
		}
		if cmd.Process != nil {
			_ = cmd.Process.Signal(unix.SIGCONT) // it may have ended
			_ = cmd.Process.Signal(unix.SIGTERM) // likewise
			_ = cmd.Wait()                       // its code is of the signal
		}
		if err == nil {
			err = outlived(registered)
		}
		result.Verdict = verdictBlocked
		if err != nil {
			result.Verdict, result.Why = verdictEscaped, err.Error()
		}
		s.settle()
		report.Attempts = append(report.Attempts, result)
		report.see(s.sightings.take(), []registration{{profile: result.Profile, name: name}})
	}
	linger("agent-killed", func(agent *os.Process, pid int) error {
		if err := agent.Kill(); err != nil {
			return err
		}
		// With the agent goes the run's init, and with that all of the run.
		return waitFor(5*time.Second, func() error { return outlived([]registration{{name: "lingers", pid: pid}}) })
	})
	linger("agent-stopped", func(agent *os.Process, pid int) error {
		if err := agent.Signal(unix.SIGSTOP); err != nil {
			return err
		}
		time.Sleep(300 * time.Millisecond) // in which the run goes on to send
		return nil
	})
}

// untilLingers starts a command and waits for its run to say that it sends.
func (s *stage) untilLingers(cmd *exec.Cmd) error {
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := s.arena.start(cmd); err != nil {
		return err
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "lingers\n" {
		return fmt.Errorf("the run says %q: %w", line, err)
	}
	return nil
}

func waitFor(limit time.Duration, is func() error) error {
	for deadline := time.Now().Add(limit); ; {
		err := is()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// hostState is what of the host a run could have changed, by path.
func (s *stage) hostState() map[string]string {
	state := make(map[string]string)
	watched := append([]string{
		"/etc/passwd", "/etc/hosts", "/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt",
		"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/hostname",
	}, s.canaries...)
	for _, path := range watched {
		content, err := os.ReadFile(path)
		if err != nil {
			content = []byte(err.Error())
		}
		state[path] = string(content)
	}
	return state
}

// compare says what has changed since.
func (s *stage) compare(before map[string]string) error {
	var errs []error
	for path, content := range s.hostState() {
		if before[path] != content {
			errs = append(errs, fmt.Errorf("%s was changed", path))
		}
	}
	return errors.Join(errs...)
}

// printReport prints a table by class, and what is wrong.
func printReport(w io.Writer, report *selftestReport, path string) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "class\tattempts\tblocked\trecorded\tnot applicable\tESCAPED\tunrecorded\tslow\t")
	row := func(name string, t classTotals) {
		fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", name, t.Attempts, t.Blocked, t.Recorded, t.NotApplicable, t.Escaped, t.Unrecorded, t.Slow)
	}
	for _, class := range attempt.Classes {
		if t := report.Classes[class]; t != nil {
			row(class, *t)
		}
	}
	row("all", report.Totals)
	if err := table.Flush(); err != nil {
		return err
	}
	for _, j := range report.Attempts {
		switch j.Verdict {
		case verdictEscaped, verdictUnrecorded, verdictSlow:
			fmt.Fprintf(w, "%s: %s, as %s: %s (%s)\n", j.Verdict, printable(j.Name), j.Profile, printable(j.Why), printable(j.Detail))
		}
	}
	for _, c := range report.Checks {
		if !c.OK {
			fmt.Fprintf(w, "FAILED: %s: %s\n", c.Check, printable(c.Found))
		}
	}
	for _, one := range report.Unattributed {
		fmt.Fprintf(w, "ESCAPED: %s\n", printable(one.What))
	}
	verdict := "nothing escapes"
	if !report.Passed {
		verdict = "NOT passed"
	}
	fmt.Fprintf(w, "agent %s on Linux %s: %s; %d different attempts apply, %d of which arrive outside without a run; %.1f s\nsigned report: %s\n",
		report.Agent, report.Kernel, verdict, report.Applicable, len(report.Control.Escaped), float64(report.DurationMS)/1000, path)
	return nil
}

// runJournal is what the journal of a run says, by process.
type runJournal struct {
	report *audit.Report
	text   []byte // as agent audit prints it
	events []journalEvent
}

// journalEvent is what of an event attributes it.
type journalEvent struct {
	Type     string         `json:"type"`
	Protocol string         `json:"protocol"`
	Process  *audit.Process `json:"process"`
}

// journal reads and verifies the journal of a profile's run.
func (s *stage) journal(profile string) (*runJournal, error) {
	e := *s.env
	e.getenv = func(name string) string {
		if name == "AGENTOPS_STATE_DIR" {
			return s.state
		}
		return s.env.getenv(name)
	}
	folder, err := e.findRun(profile)
	if err != nil {
		return nil, err
	}
	keys, err := e.pinnedKeys(nil)
	if err != nil {
		return nil, err
	}
	j := &runJournal{}
	var lines []json.RawMessage
	j.report, err = verifyJournal(filepath.Join(folder, journalName), keys, func(_ audit.Header, line []byte) error {
		var event journalEvent
		if err := json.Unmarshal(line, &event); err != nil {
			return err
		}
		j.events = append(j.events, event)
		lines = append(lines, append(json.RawMessage(nil), line...))
		return nil
	})
	if err != nil {
		return nil, err
	}
	var text strings.Builder
	if err := printAudit(&text, j.report, lines); err != nil {
		return nil, err
	}
	j.text = []byte(text.String())
	return j, nil
}

// problem says what is wrong with a journal: that it does not hold, that a line
// was forged, or that it commands the terminal of who reads it.
func (j *runJournal) problem() error {
	if !j.report.Verified() {
		return errors.New(strings.Join(j.report.Problems, "; "))
	}
	for _, event := range j.events {
		if event.Type == "forged" {
			return errors.New("a line was forged by the run")
		}
	}
	for lines := bufio.NewScanner(strings.NewReader(string(j.text))); lines.Scan(); {
		if strings.ContainsFunc(lines.Text(), func(r rune) bool { return r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 }) {
			return fmt.Errorf("control characters in %.60q", lines.Text())
		}
	}
	return nil
}
