package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// cgroupPrefix begins the names of runs' cgroups, which are at the top of every
// hierarchy: what is swept is told from what is not ours by it.
const cgroupPrefix = "/agentops-"

// cgroupName is the path of a run's cgroup in every hierarchy.
func cgroupName(id string) string { return cgroupPrefix + id }

// hierarchies are the mount points of this host's cgroup filesystems, version 1
// and 2, each once.
func hierarchies(mounts []*mountinfo.Info) []string {
	var points []string
	for _, m := range mounts {
		if (m.FSType == "cgroup" || m.FSType == "cgroup2") && !slices.Contains(points, m.Mountpoint) {
			points = append(points, m.Mountpoint)
		}
	}
	return points
}

// unifiedMount is where the version 2 hierarchy is mounted, which on a host of version 1
// is one beside the others. On most hosts it is in one of two places, and to look there
// takes less than to read the table of all mounts.
func unifiedMount() (string, error) {
	for _, point := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if err := unix.Statfs(point, &st); err == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			return point, nil
		}
	}
	mounts, err := listCgroupMounts()
	if err != nil {
		return "", err
	}
	for _, m := range mounts {
		if m.FSType == "cgroup2" {
			return m.Mountpoint, nil
		}
	}
	return "", errors.New("no cgroup2 filesystem is mounted")
}

// unifiedPath is a process's cgroup in the version 2 hierarchy. membership is its
// /proc/PID/cgroup.
func unifiedPath(membership string) (string, error) {
	for line := range strings.Lines(membership) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return path, nil
		}
	}
	return "", errors.New("the process is in no cgroup of version 2")
}

func listCgroupMounts() ([]*mountinfo.Info, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("list cgroup mounts: %w", err)
	}
	return mounts, nil
}

// makeCgroup makes a run's cgroup of version 2, which libcontainer then finds, and
// returns its folder.
func makeCgroup(name string) (string, error) {
	point, err := unifiedMount()
	if err != nil {
		return "", err
	}
	path := filepath.Join(point, name)
	if err := os.Mkdir(path, 0o755); err != nil {
		return "", fmt.Errorf("make the run's cgroup: %w", err)
	}
	return path, nil
}

// ExpectMoves has the kernel prepare for a process to be moved to another cgroup, for
// which it waits some 10 ms unless one was moved a moment ago: it moves the calling one to
// where it is. It is a favour: where it is not granted, nothing is lost.
func ExpectMoves() {
	if folder, err := unifiedPathOf(os.Getpid()); err == nil {
		_ = os.WriteFile(filepath.Join(folder, "cgroup.procs"), []byte("0"), 0)
	}
}

// unifiedPathOf is the folder of a process's cgroup of version 2.
func unifiedPathOf(pid int) (string, error) {
	point, err := unifiedMount()
	if err != nil {
		return "", err
	}
	membership, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return "", err
	}
	path, err := unifiedPath(string(membership))
	return filepath.Join(point, path), err
}

// removeCgroup ends what still runs in a run's cgroup, and removes that from
// every hierarchy. The processes of other cgroups are out of its reach.
func removeCgroup(name string) error {
	if id, ok := strings.CutPrefix(name, cgroupPrefix); !ok || id == "" || strings.Trim(id, idCharacters) != "" {
		return fmt.Errorf("remove cgroup %q: it is not a run's", name)
	}
	mounts, err := listCgroupMounts()
	if err != nil {
		return err
	}
	var errs []error
	for _, point := range hierarchies(mounts) {
		folder := filepath.Join(point, name)
		if !isDir(folder) {
			continue
		}
		if err := killCgroup(folder); err != nil {
			errs = append(errs, err)
			continue
		}
		// Waits, for a while, until the dying have left.
		errs = append(errs, cgroups.RemovePath(folder))
	}
	return errors.Join(errs...)
}

// killCgroup kills the processes in a cgroup's folder.
func killCgroup(folder string) error {
	err := os.WriteFile(filepath.Join(folder, "cgroup.kill"), []byte("1"), 0)
	if err == nil {
		return nil
	}
	// Before Linux 5.14, and in version 1. A process may fork while its list is
	// read, but its parent dies, so a few rounds come to the end.
	for range 10 {
		pids, err := cgroups.GetAllPids(folder)
		if err != nil {
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
				return nil
			}
			return fmt.Errorf("list the processes of %s: %w", folder, err)
		}
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
				return fmt.Errorf("kill process %d of %s: %w", pid, folder, err)
			}
		}
	}
	return nil
}
