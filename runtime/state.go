package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Record is what is left to know of a run whose agent was killed.
type Record struct {
	ID     string `json:"id"`
	PID    int    `json:"pid"`    // of the agent
	Folder string `json:"folder"` // the run's, on disk: Config.Folder
}

// Claim is an agent's hold on a run's name and on what the run has that outlives
// a SIGKILL: a live folder, a cgroup, changes on disk. The hold is a lock on a
// file in the live folder, which the kernel lets go of with the agent.
type Claim struct {
	dir  string
	lock *os.File
}

// BusyError says that a name is in use by a run that goes on.
type BusyError struct {
	Name string
	Record
}

func (e *BusyError) Error() string {
	return fmt.Sprintf("a run named %s is going on (%s, pid %d)", e.Name, e.ID, e.PID)
}

const recordName = "record.json"

// recordWait is how long who has the lock of a live folder may be without a record
// in it: an agent that sweeps has it for a moment, as has one that begins.
const recordWait = time.Second

// TakeClaim takes a name in runDir for a run. The error is a *BusyError when
// another agent has it. What a killed agent's run of that name has left is set
// aside for Sweep.
func TakeClaim(runDir, name string, record Record) (*Claim, error) {
	if name == "" || name[0] == '.' || strings.Trim(name, idCharacters) != "" || len(name) > 64 {
		return nil, fmt.Errorf("run name %q: only up to 64 letters, digits, '_', '.' and '-' are allowed, '.' not first", name)
	}
	dir := filepath.Join(runDir, name)
	if err := os.MkdirAll(runDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the run folder: %w", err)
	}
	for deadline := time.Now().Add(recordWait); ; {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("make the live folder: %w", err)
		}
		lock, err := lockFolder(dir)
		switch {
		case errors.Is(err, os.ErrNotExist):
			continue // swept away since
		case errors.Is(err, unix.EWOULDBLOCK):
			other, err := readRecord(dir)
			if errors.Is(err, os.ErrNotExist) && time.Now().Before(deadline) {
				time.Sleep(time.Millisecond)
				continue
			}
			return nil, &BusyError{Name: name, Record: other}
		case err != nil:
			return nil, err
		}
		if old, err := readRecord(dir); err == nil {
			// Sweep finds it by its record, under whatever name.
			aside := filepath.Join(runDir, "."+old.ID)
			err := errors.Join(os.Rename(dir, aside), lock.Close())
			if err != nil {
				return nil, fmt.Errorf("set the interrupted run %s aside: %w", old.ID, err)
			}
			continue
		}
		c := &Claim{dir: dir, lock: lock}
		if err := c.write(record); err != nil {
			return nil, errors.Join(err, c.Release())
		}
		return c, nil
	}
}

// Dir is the live folder.
func (c *Claim) Dir() string { return c.dir }

// Release gives the name back and removes the live folder.
func (c *Claim) Release() error {
	// Removed while it is locked: nobody can take what is about to go.
	err := errors.Join(os.RemoveAll(c.dir), c.lock.Close())
	if err != nil {
		return fmt.Errorf("release the live folder: %w", err)
	}
	return nil
}

// write makes the record appear whole or not at all.
func (c *Claim) write(record Record) error {
	content, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("write the run's record: %w", err)
	}
	path := filepath.Join(c.dir, recordName)
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		return fmt.Errorf("write the run's record: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write the run's record: %w", err)
	}
	return nil
}

func readRecord(dir string) (Record, error) {
	var record Record
	content, err := os.ReadFile(filepath.Join(dir, recordName))
	if err != nil {
		return record, err
	}
	if err := json.Unmarshal(content, &record); err != nil {
		return record, fmt.Errorf("read %s: %w", recordName, err)
	}
	return record, nil
}

// Records returns the records of all claims in runDir: of runs that go on, and of
// those whose agents were killed and that no Sweep has come to yet.
func Records(runDir string) ([]Record, error) {
	entries, err := os.ReadDir(runDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the records of runs: %w", err)
	}
	var records []Record
	for _, entry := range entries {
		// One without a record has not begun, or is over.
		if record, err := readRecord(filepath.Join(runDir, entry.Name())); err == nil {
			records = append(records, record)
		}
	}
	return records, nil
}

// lockFolder takes the lock of a live folder, without waiting: EWOULDBLOCK says
// that an agent has it, os.ErrNotExist that the folder went away meanwhile.
func lockFolder(dir string) (*os.File, error) {
	file, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open the live folder: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), file.Close())
	}
	// Whoever had the lock before may have removed or moved the folder.
	held, err := file.Stat()
	if err == nil {
		var there os.FileInfo
		if there, err = os.Stat(dir); err == nil && !os.SameFile(held, there) {
			err = os.ErrNotExist
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), file.Close())
	}
	return file, nil
}

// Sweep removes from the host what runs have left in runDir whose agents were
// killed: processes, cgroups, changes on disk. Before the last trace of each
// goes, seal is called, to close the run's journal; if it fails the trace stays
// for the next Sweep. Runs that go on are not touched. Several agents may sweep
// at once.
func Sweep(runDir string, seal func(Record) error) error {
	entries, err := os.ReadDir(runDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sweep interrupted runs: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		if !entry.IsDir() {
			continue
		}
		dir := filepath.Join(runDir, entry.Name())
		lock, err := lockFolder(dir)
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, os.ErrNotExist) {
			continue // it goes on, or another agent sweeps it
		}
		if err == nil {
			err = errors.Join(sweepFolder(dir, seal), lock.Close())
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

// sweepFolder removes what belongs to one live folder, which is locked, and then
// the folder.
func sweepFolder(dir string, seal func(Record) error) error {
	record, err := readRecord(dir)
	if errors.Is(err, os.ErrNotExist) {
		return os.RemoveAll(dir) // its agent had not come to begin
	}
	if err != nil {
		return err
	}
	if err := removeCgroup(cgroupName(record.ID)); err != nil {
		return err
	}
	if filepath.IsAbs(record.Folder) {
		if err := removeView(viewFolder(record.Folder)); err != nil {
			return err
		}
	}
	if err := seal(record); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}
