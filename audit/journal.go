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
	mu     sync.Mutex
	file   *os.File
	seal   Seal
	size   int64
	totals Totals
	hosts  map[string]struct{}
	err    error
	failed chan struct{}
	encoder

	pending   []byte // lines that are still to be written
	written   Seal   // as of the lines before
	scheduled bool   // they will be, by flushLater
}

// The lines of http.request, of which there may be many, are written in groups: they
// tell of what has happened, and hold nothing up. Whatever is recorded before it may
// happen is written at once, and all before it.
const (
	groupFor = time.Millisecond
	groupMax = 64 << 10 // bytes
)

// maxHosts bounds the set from which Totals.Hosts is counted.
const maxHosts = 1 << 16

// Create starts a run's journal in a new file, mode 0600.
func Create(path, run string) (*Journal, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create the journal: %w", err)
	}
	j := &Journal{
		file:    file,
		seal:    Seal{Run: run, SHA256: genesis},
		written: Seal{Run: run, SHA256: genesis},
		hosts:   make(map[string]struct{}),
		failed:  make(chan struct{}),
	}
	j.encoder = newEncoder()
	return j, nil
}

// Append writes one event and returns once the kernel has it; an http.request it has
// a millisecond later. After the first failure the journal takes nothing more and
// every call returns that error: a caller must not let pass what it could not record.
func (j *Journal) Append(e Event) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.append(e, nil)
}

// append writes an event, as a line that a key has signed unless that is nil.
func (j *Journal) append(e Event, key *Key) error {
	if j.err != nil {
		return j.err
	}
	if !Recording {
		j.count(e) // a run compares its counts at its end
		return nil
	}
	line, err := j.encode(Header{
		Seq:  j.seal.Lines,
		Time: time.Now().UTC().Format(time.RFC3339Nano),
		Run:  j.seal.Run,
		Type: e.Type(),
		Prev: j.seal.SHA256,
	}, e)
	if err != nil {
		return j.fail(err)
	}
	if key != nil {
		line = append(key.signLine(journalContext, line[:len(line)-1]), '\n')
	}
	j.pending = append(j.pending, line...)
	sum := sha256.Sum256(line[:len(line)-1])
	j.seal.SHA256 = hex.EncodeToString(sum[:])
	j.seal.Lines++
	j.count(e)
	if _, later := e.(HTTPRequest); !later || len(j.pending) >= groupMax {
		return j.flush()
	}
	if !j.scheduled {
		j.scheduled = true
		time.AfterFunc(groupFor, j.flushLater)
	}
	return nil
}

// flush writes what is pending.
func (j *Journal) flush() error {
	if err := j.write(j.pending); err != nil {
		return j.fail(err)
	}
	j.pending, j.written = j.pending[:0], j.seal
	return nil
}

func (j *Journal) flushLater() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.scheduled = false
	if j.err == nil {
		_ = j.flush() // who records next is told, and who waits for Failed
	}
}

// fail notes the first failure.
func (j *Journal) fail(err error) error {
	j.err = fmt.Errorf("write the journal: %w", err)
	j.pending, j.seal = nil, j.written
	close(j.failed)
	return j.err
}

// write appends whole lines or leaves the file as it was.
func (j *Journal) write(lines []byte) error {
	n, err := j.file.Write(lines)
	if err != nil {
		if n > 0 {
			err = errors.Join(err, j.file.Truncate(j.size))
		}
		return err
	}
	j.size += int64(n)
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
	j.mu.Lock()
	defer j.mu.Unlock()
	var err error
	if j.err == nil {
		err = j.flush()
	}
	return errors.Join(err, j.file.Close())
}

// Seal writes run.exit with the journal's totals as the last line, signed, which
// by the chain signs all before it; brings the file to the disk and closes it. The
// totals are filled in for the caller. The seal it returns belongs outside the
// journal.
func (j *Journal) Seal(exit *RunExit, key *Key) (Seal, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	exit.Totals = j.totals
	err := j.append(*exit, key)
	if err == nil {
		if err = j.file.Sync(); err != nil {
			err = fmt.Errorf("sync the journal: %w", err)
		}
		j.err = ErrSealed
	}
	return j.seal, errors.Join(err, j.file.Close())
}
