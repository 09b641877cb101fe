package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
	"unsafe"

	"agentops/test/escape/attempt"

	"golang.org/x/sys/unix"
)

// probe is one attempt.
type probe struct {
	name   string // its first 15 bytes are its own: the kernel's name of its process
	class  string
	record attempt.Record
	plain  bool                        // it sends, and touches nothing else: it may be made on a host
	root   bool                        // it needs uid 0
	needs  func(*attempt.Stage) string // why it is not applicable; "": it is
	try    func(*try) verdict
}

// probes are all attempts on a stage.
func probes(stage *attempt.Stage) []probe {
	return slices.Concat(
		addressProbes(stage), transportProbes(), relayProbes(), sendProbes(), ipv6Probes(stage), familyProbes(),
		exemptionProbes(), tamperingProbes(), hostProbes(stage), nameProbes(stage), identityProbes(),
		parsingProbes(), metadataProbes(), credentialProbes(), caProbes(), journalProbes(), timeProbes(),
	)
}

// missing says why a probe does not apply.
func (p *probe) missing(stage *attempt.Stage, o options) string {
	if p.root && o.uid != 0 {
		return "only root could try"
	}
	if p.needs == nil {
		return ""
	}
	return p.needs(stage)
}

func (p *probe) result(outcome attempt.Outcome, detail string, took time.Duration) attempt.Result {
	return attempt.Result{
		Name: p.name, Class: p.class, Outcome: outcome, Detail: detail,
		Micros: took.Microseconds(), PID: os.Getpid(), Record: p.record,
	}
}

// try is an attempt that is being made.
type try struct {
	stage *attempt.Stage
	name  string
	plain bool
	began time.Time
}

// verdict is what became of it.
type verdict struct {
	outcome attempt.Outcome
	detail  string
	took    time.Duration
}

// start sets the clock: before the system call that is to be refused.
func (t *try) start() { t.began = time.Now() }

func (t *try) say(outcome attempt.Outcome, format string, args ...any) verdict {
	return verdict{outcome, clip(fmt.Sprintf(format, args...), 300), time.Since(t.began)}
}

func (t *try) blocked(err error) verdict { return t.say(attempt.Blocked, "%s", describe(err)) }

func (t *try) reached(format string, args ...any) verdict {
	return t.say(attempt.Reached, format, args...)
}

func (t *try) silent(format string, args ...any) verdict {
	return t.say(attempt.Silent, format, args...)
}

func (t *try) absent(why string) verdict { return t.say(attempt.NotApplicable, "%s", why) }

// refusals are the errnos by which a kernel says that something may not be had.
// Any other says that it has looked at the arguments.
var refusals = []unix.Errno{
	unix.EPERM, unix.EACCES, unix.ENOSYS, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT, unix.ESOCKTNOSUPPORT,
}

// judge is the verdict on a system call that no run may make: it is blocked by a
// refusal, or by one of further.
func (t *try) judge(err error, further ...unix.Errno) verdict {
	if err == nil {
		return t.reached("it was let do")
	}
	var errno unix.Errno
	if errors.As(err, &errno) && (slices.Contains(refusals, errno) || slices.Contains(further, errno)) {
		return t.blocked(err)
	}
	return t.reached("it was let try: %v", err)
}

// describe names an error as programs know it.
func describe(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// payload is what an attempt sends; nobody takes it for HTTP or TLS.
func (t *try) payload() []byte { return []byte("\x00" + attempt.Marker + t.name + "\n") }

func address(mem []byte) uintptr { return uintptr(unsafe.Pointer(&mem[0])) }

// call makes a system call by its number.
func call(nr uintptr, args ...uintptr) (uintptr, error) {
	var a [6]uintptr
	copy(a[:], args)
	r, _, errno := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	if errno != 0 {
		return r, errno
	}
	return r, nil
}
