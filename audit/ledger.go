package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Entry is a line of the ledger: a run that was sealed.
type Entry struct {
	Seq  uint64 `json:"seq"`  // 0 for the first, then one more each line
	Time string `json:"time"` // RFC 3339, UTC, nanoseconds
	Seal
	Prev string `json:"prev"` // SHA-256 of the line before, without its newline; zeros for the first
}

// Ledger is a host's list of the runs that it has sealed: a file of signed lines,
// chained as those of a journal are. Agents share it by a lock on the file.
type Ledger struct {
	path string
	key  *Key
}

// maxEntry bounds a line of the ledger, in bytes.
const maxEntry = 4 << 10

// OpenLedger makes the ledger at path where there is none. The error is of a
// ledger that could not be continued.
func OpenLedger(path string, key *Key) (*Ledger, error) {
	l := &Ledger{path: path, key: key}
	file, err := l.open()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	_, _, err = l.next(file)
	return l, err
}

// Path is where the ledger is.
func (l *Ledger) Path() string { return l.path }

func (l *Ledger) open() (*os.File, error) {
	file, err := os.OpenFile(l.path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the ledger: %w", err)
	}
	if err := flock(file, unix.LOCK_EX); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// Append adds a run and brings the ledger to the disk.
func (l *Ledger) Append(seal Seal) error {
	file, err := l.open()
	if err != nil {
		return err
	}
	defer file.Close()
	entry, size, err := l.next(file)
	if err != nil {
		return err
	}
	entry.Time = time.Now().UTC().Format(time.RFC3339Nano)
	entry.Seal = seal
	line, err := json.Marshal(entry)
	if err != nil {
		return fmt.Errorf("encode the ledger's line: %w", err)
	}
	line = append(l.key.signLine(ledgerContext, line), '\n')
	if len(line) > maxEntry {
		return fmt.Errorf("write the ledger: a line of %d bytes", len(line))
	}
	if _, err := file.WriteAt(line, size); err != nil {
		return errors.Join(fmt.Errorf("write the ledger: %w", err), file.Truncate(size))
	}
	if err := file.Sync(); err != nil {
		return fmt.Errorf("sync the ledger: %w", err)
	}
	return nil
}

// next returns the chain's part of the next entry, and where it goes. What is
// behind the last newline was being written when an agent or the host died, so
// that nobody was told that it is there: it is cut off.
func (l *Ledger) next(file *os.File) (Entry, int64, error) {
	info, err := file.Stat()
	if err != nil {
		return Entry{}, 0, fmt.Errorf("read the ledger: %w", err)
	}
	size := info.Size()
	from := max(0, size-2*maxEntry) // a whole line and a torn one
	tail := make([]byte, size-from)
	if _, err := io.ReadFull(io.NewSectionReader(file, from, size-from), tail); err != nil {
		return Entry{}, 0, fmt.Errorf("read the ledger: %w", err)
	}
	end := bytes.LastIndexByte(tail, '\n') + 1
	torn := len(tail) - end
	if torn > maxEntry {
		return Entry{}, 0, fmt.Errorf("the ledger %s does not end with a line", l.path)
	}
	size -= int64(torn)
	next := Entry{Prev: genesis}
	if size > 0 {
		line := tail[:end-1]
		line = line[bytes.LastIndexByte(line, '\n')+1:]
		var last Entry
		if err := json.Unmarshal(line, &last); err != nil {
			return Entry{}, 0, fmt.Errorf("the last line of the ledger %s is none: %w", l.path, err)
		}
		next = Entry{Seq: last.Seq + 1, Prev: hashLine(line)}
	}
	if torn > 0 {
		if err := file.Truncate(size); err != nil {
			return Entry{}, 0, fmt.Errorf("cut a torn line off the ledger: %w", err)
		}
	}
	return next, size, nil
}

// ReadLedger reads a ledger between two lines; where there is none, it is empty.
func ReadLedger(path string) ([]byte, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	defer file.Close()
	if err := flock(file, unix.LOCK_SH); err != nil {
		return nil, err
	}
	content, err := io.ReadAll(file)
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	return content, nil
}

// VerifyLedger checks a ledger's chain and, unless keys is nil, that one of them
// has signed each line. visit, when not nil, gets every entry. The error is one of
// reading.
func VerifyLedger(ledger io.Reader, keys Keys, visit func(Entry)) (*Report, error) {
	r := &Report{SHA256: genesis}
	runs := make(map[string]uint64)
	err := r.read(ledger, func(line []byte) error {
		number := r.Lines + 1
		var e Entry
		err := json.Unmarshal(line, &e)
		signer, signed := keys.check(ledgerContext, line)
		switch {
		case err != nil:
			r.changed("line %d is no entry: %v", number, err)
		case e.Seq != r.Lines:
			r.changed("line %d has seq %d, not %d: lines were removed, added or reordered", number, e.Seq, r.Lines)
		case e.Prev != r.SHA256:
			r.changed("line %d does not follow from line %d: one of them was changed", number, number-1)
		case signed != nil:
			r.changed("line %d, of run %q, %v", number, e.Run, signed)
		case !validTime(e.Time):
			r.changed("line %d has no valid time", number)
		case runs[e.Run] > 0:
			r.changed("line %d is of run %q, as line %d is", number, e.Run, runs[e.Run])
		default:
			runs[e.Run] = number
			r.signed(signer)
		}
		r.advance(line)
		if err == nil && visit != nil {
			visit(e)
		}
		return nil
	})
	return r, err
}

// FindEntry returns a run's line of a ledger, nil when it has none. The rest of
// the ledger is not looked at. The error says that the line's signature is not
// valid, and comes with the line.
func FindEntry(ledger []byte, run string, keys Keys) (*Entry, error) {
	for line := range bytes.Lines(ledger) {
		line, whole := bytes.CutSuffix(line, []byte("\n"))
		if !whole || !bytes.Contains(line, []byte(run)) {
			continue
		}
		var e Entry
		if json.Unmarshal(line, &e) != nil || e.Run != run {
			continue
		}
		if _, err := keys.check(ledgerContext, line); err != nil {
			return &e, fmt.Errorf("the ledger's line of run %q %w", run, err)
		}
		return &e, nil
	}
	return nil, nil
}
