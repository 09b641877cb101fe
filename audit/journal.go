// Package audit is a run's evidence: an append-only journal of events, one JSON
// object a line, each line chained to the one before it by SHA-256; the last one
// is signed by the host, and a ledger has every journal's.
package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// ErrSealed is returned by Append after the journal's last line.
var ErrSealed = errors.New("the journal is sealed")

// genesis is the prev of a journal's first line.
var genesis = hex.EncodeToString(make([]byte, sha256.Size))

// Header is what every line begins with.
type Header struct {
	Seq  uint64 `json:"seq"`  // 0 for run.start, then one more each line
	Time string `json:"time"` // RFC 3339, UTC, nanoseconds
	Run  string `json:"run"`
	Type string `json:"type"`
	Prev string `json:"prev"` // SHA-256 of the line before, without its newline; zeros for the first
}

// Journal is an open journal. It is safe for concurrent use.
type Journal struct {
	// mu is for what follows. Requests wait for it, so it is held for moments only.
	mu        sync.Mutex
	waiting   []record // that are still to be written
	scheduled bool     // they will be, by flushLater
	totals    Totals
	hosts     map[string]struct{}
	err       error
	failed    chan struct{}

	// writing is for what follows, and is taken before mu.
	writing sync.Mutex
	group   []record // that is being written
	file    *os.File
	size    int64
	chain   chain // as of the lines in the file
	encoder
}

// record is an event and when it was recorded.
type record struct {
	time  time.Time
	event Event
	key   *Key // that signs the line; nil: none
}

// chain is where a journal has come to.
type chain struct {
	run   string
	lines uint64
	last  [sha256.Size]byte // hash of the last line; zeros: there is none
}

func (c *chain) seal() Seal {
	return Seal{Run: c.run, Lines: c.lines, SHA256: hex.EncodeToString(c.last[:])}
}

// The lines of http.request, of which there may be many, are made and written in
// groups: they tell of what has happened, and hold nothing up. Whatever is recorded
// before it may happen is written at once, and all before it.
const (
	groupFor = time.Millisecond
	groupMax = 64 // records
)

// maxHosts bounds the set from which Totals.Hosts is counted.
const maxHosts = 1 << 16

// Create starts a run's journal in a new file, mode 0600.
func Create(path, run string) (*Journal, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create the journal: %w", err)
	}
	return &Journal{
		file:    file,
		chain:   chain{run: run},
		hosts:   make(map[string]struct{}),
		failed:  make(chan struct{}),
		encoder: newEncoder(),
	}, nil
}

// Append writes one event and returns once the kernel has it; an http.request it has
// a millisecond later. After the first failure the journal takes nothing more and
// every call returns that error: a caller must not let pass what it could not record.
func (j *Journal) Append(e Event) error {
	_, later := e.(HTTPRequest)
	j.mu.Lock()
	if j.err != nil || !Recording {
		defer j.mu.Unlock()
		if j.err == nil {
			j.count(e) // a run compares its counts at its end
		}
		return j.err
	}
	j.add(e, nil)
	later = later && len(j.waiting) < groupMax
	schedule := later && !j.scheduled
	if schedule {
		j.scheduled = true
	}
	j.mu.Unlock()
	if schedule {
		time.AfterFunc(groupFor, j.flushLater)
	}
	if later {
		return nil
	}
	return j.flush()
}

// add has an event wait.
func (j *Journal) add(e Event, key *Key) {
	j.waiting = append(j.waiting, record{time.Now(), e, key})
	j.count(e)
}

// flush writes what waits. That may be nothing: who came just before has written what
// the caller has added.
func (j *Journal) flush() error {
	j.writing.Lock()
	defer j.writing.Unlock()
	j.mu.Lock()
	err := j.err
	j.group, j.waiting = j.waiting, j.group[:0]
	j.mu.Unlock()
	if err != nil {
		return err
	}
	if err := j.write(j.group); err != nil {
		j.mu.Lock()
		defer j.mu.Unlock()
		return j.fail(err)
	}
	clear(j.group) // which holds on to the requests' texts
	return nil
}

func (j *Journal) flushLater() {
	j.mu.Lock()
	j.scheduled = false
	j.mu.Unlock()
	_ = j.flush() // who records next is told, and who waits for Failed
}

// fail notes the first failure.
func (j *Journal) fail(err error) error {
	j.err = fmt.Errorf("write the journal: %w", err)
	close(j.failed)
	return j.err
}

// write appends the lines of a group, whole, or leaves the file as it was.
func (j *Journal) write(group []record) error {
	if len(group) == 0 {
		return nil
	}
	chain := j.chain
	j.lines = j.lines[:0]
	for _, r := range group {
		start := len(j.lines)
		if err := j.encode(&chain, r.time, r.event); err != nil {
			return err
		}
		if r.key != nil {
			j.lines = append(j.lines[:start], r.key.signLine(journalContext, j.lines[start:])...)
		}
		chain.last = sha256.Sum256(j.lines[start:])
		chain.lines++
		j.lines = append(j.lines, '\n')
	}
	n, err := j.file.Write(j.lines)
	if err != nil {
		if n > 0 {
			err = errors.Join(err, j.file.Truncate(j.size))
		}
		return err
	}
	j.size += int64(n)
	j.chain = chain
	return nil
}

func (j *Journal) count(e Event) {
	switch e := e.(type) {
	case FlowOpen:
		if e.Process == nil {
			j.totals.Unknown++
		}
		if len(j.hosts) < maxHosts {
			j.hosts[e.Host] = struct{}{}
		}
		j.totals.Hosts = uint64(len(j.hosts))
		j.totals.add(e.Type(), countable{Protocol: e.Protocol})
	case FlowClose:
		j.totals.add(e.Type(), countable{Sent: e.DatagramsSent})
	case HTTPRequest:
		j.totals.Requests++
	case DNSQuery:
		if e.Flow == 0 && e.Process == nil {
			j.totals.Unknown++
		}
		j.totals.add(e.Type(), countable{Flow: e.Flow})
	case Refused:
		j.totals.Refused++
		if e.Process == nil {
			j.totals.Unknown++
		}
		j.totals.add(e.Type(), countable{Flow: e.Flow, Protocol: e.Protocol, Reason: e.Reason})
	case Lost:
		if e.What == LostRefusals {
			j.totals.Refused += e.Count
		}
		j.totals.add(e.Type(), countable{What: e.What, Count: e.Count})
	}
}

// Failed is closed when the journal could not be written.
func (j *Journal) Failed() <-chan struct{} { return j.failed }

// Err is the error that closed Failed, else nil.
func (j *Journal) Err() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if errors.Is(j.err, ErrSealed) {
		return nil
	}
	return j.err
}

// Totals counts what was written so far.
func (j *Journal) Totals() Totals {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.totals
}

// Close closes the file without sealing it.
func (j *Journal) Close() error {
	j.writing.Lock()
	defer j.writing.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	var err error
	if j.err == nil {
		err = j.flushLast()
	}
	return errors.Join(err, j.file.Close())
}

// Seal writes run.exit with the journal's totals as the last line, signed, which
// by the chain signs all before it; brings the file to the disk and closes it. The
// totals are filled in for the caller. The seal it returns belongs outside the
// journal.
func (j *Journal) Seal(exit *RunExit, key *Key) (Seal, error) {
	j.writing.Lock()
	defer j.writing.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	exit.Totals = j.totals
	err := j.err
	if err == nil && Recording {
		j.add(*exit, key)
		err = j.flushLast()
	}
	if err == nil {
		if err = j.file.Sync(); err != nil {
			err = fmt.Errorf("sync the journal: %w", err)
		}
		j.err = ErrSealed
	}
	return j.chain.seal(), errors.Join(err, j.file.Close())
}

// flushLast writes what waits, for who has both locks.
func (j *Journal) flushLast() error {
	err := j.write(j.waiting)
	j.waiting = nil
	if err != nil {
		return j.fail(err)
	}
	return nil
}
