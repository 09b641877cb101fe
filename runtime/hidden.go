package runtime

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/user"
)

// freshFolders are the host's that a run gets empty ones of its own for, and
// their modes: what is in them belongs to the host's users and daemons.
var freshFolders = []struct{ path, mode string }{
	{"/tmp", "1777"},
	{"/var/tmp", "1777"},
	{"/run", "0755"},
	{"/root", "0700"},
	{"/home", "0755"},
	{"/mnt", "0755"},
	{"/media", "0755"},
}

// secretPaths are patterns of files and folders of the host that hold secrets,
// or other containers. A run sees empty ones in their place.
var secretPaths = []string{
	// Passwords and what guards them.
	"/etc/shadow*", "/etc/gshadow*", "/etc/.pwd.lock", "/etc/security/opasswd",
	"/etc/sudoers*", "/etc/doas.conf",
	"/var/backups", // Debian's daily copies of shadow and gshadow
	// Private keys.
	"/etc/ssl/private", "/etc/pki/tls/private", "/etc/pki/*/private",
	"/etc/ssh/ssh_host_*_key", "/etc/krb5.keytab", "/etc/ipsec.secrets", "/etc/ipsec.d/private",
	"/etc/swanctl/private", "/etc/swanctl/rsa", "/etc/swanctl/ecdsa", "/etc/wireguard", "/etc/openvpn",
	"/etc/letsencrypt", "/var/lib/letsencrypt", "/var/lib/caddy",
	"/etc/NetworkManager/system-connections", "/etc/wpa_supplicant", "/etc/ppp",
	"/etc/luks*", "/etc/cryptsetup-keys.d", "/etc/credstore*", "/var/lib/systemd/credential.secret",
	"/etc/vault*", "/etc/consul.d", "/var/lib/vault", "/var/lib/acme",
	// Identities of hosts in clouds, fleets and clusters.
	"/var/lib/cloud", "/etc/cloud", "/var/log/cloud-init*.log", "/var/lib/waagent", "/var/lib/amazon",
	"/etc/aws", "/etc/boto.cfg", "/etc/google", "/etc/azure",
	"/etc/kubernetes", "/etc/rancher", "/etc/cni", "/etc/docker", "/etc/containers", "/etc/crio",
	"/etc/puppetlabs", "/etc/salt/pki", "/etc/chef", "/etc/gitlab-runner", "/etc/sssd", "/var/lib/sss",
	"/etc/netrc", "/etc/apt/auth.conf*", "/etc/mysql/debian.cnf", "/etc/ceph", "/etc/agentops", "/var/lib/agentops",
	// Container engines, virtual machines and their contents.
	"/var/lib/docker*", "/var/lib/containerd*", "/var/lib/containers", "/var/lib/kubelet", "/var/lib/rancher",
	"/var/lib/k0s", "/var/lib/crio", "/var/lib/cri-o", "/var/lib/cni", "/var/lib/etcd", "/var/lib/buildkit",
	"/var/lib/lxc", "/var/lib/lxd", "/var/lib/incus", "/var/lib/libvirt", "/var/lib/machines",
	"/var/lib/portables", "/var/lib/nerdctl", "/var/lib/snapd", "/var/snap", "/opt/containerd",
	// What a crash or a log may have caught.
	"/var/crash", "/var/lib/systemd/coredump", "/var/log/journal", "/var/log/audit", "/var/log/auth.log*",
	"/var/spool", "/var/mail", "/boot", "/lost+found", "/swapfile", "/swap.img",
}

// homeSecrets are what users and programs keep credentials in, below a home.
// Homes are hidden where they usually are; a daemon's may be anywhere.
var homeSecrets = []string{
	".ssh", ".aws", ".gnupg", ".netrc", ".kube", ".docker", ".azure", ".git-credentials", ".pgpass", ".my.cnf",
	".npmrc", ".pypirc", ".vault-token", ".config", ".local", ".cache", ".bash_history", ".password-store",
}

// engineSockets give whoever can write to them the host.
var engineSockets = []string{
	"/run/docker.sock", "/var/run/docker.sock", "/run/containerd", "/run/crio", "/run/podman",
	"/run/dbus", "/run/systemd", "/run/snapd.socket", "/var/lib/lxd", "/var/lib/incus",
}

// engineSocketNames are what engines call their sockets, wherever these are.
var engineSocketNames = []string{
	"docker.sock", "containerd.sock", "crio.sock", "podman.sock", "buildkitd.sock", "dockershim.sock", "cri-dockerd.sock",
	"system_bus_socket",
}

// hiding is what of the host a run does not see.
type hiding struct {
	fresh  []string // folders replaced by empty ones
	masked []string // what exists outside of these and is covered
}

// hide looks up on this host what a run with the given visible folders must not
// see. extra are paths to hide beside the usual ones.
func hide(extra, visible []string) (hiding, error) {
	var h hiding
	known := make(resolver)
	for _, folder := range freshFolders {
		if isDir(folder.path) {
			h.fresh = append(h.fresh, known.resolve(folder.path))
		}
	}
	secrets, err := findSecrets()
	if err != nil {
		return hiding{}, err
	}
	candidates := slices.Concat(extra, secrets)
	for _, dir := range homes() {
		if within(dir, h.fresh...) || !isDir(dir) {
			continue
		}
		for _, name := range homeSecrets {
			candidates = append(candidates, filepath.Join(dir, name))
		}
	}
	sockets, err := hostSockets()
	if err != nil {
		return hiding{}, err
	}
	for _, socket := range sockets {
		if !within(socket, visible...) {
			candidates = append(candidates, socket)
		}
	}
	for _, path := range candidates {
		if _, err := os.Stat(path); err != nil {
			continue // nothing there, or a link to nothing
		}
		if path = known.resolve(path); !within(path, h.fresh...) && path != "/" {
			h.masked = append(h.masked, path)
		}
	}
	slices.Sort(h.masked)
	h.masked = slices.Compact(h.masked)
	return h, nil
}

// findSecrets are those of secretPaths that this host has.
func findSecrets() ([]string, error) {
	var paths []string
	listed := make(map[string][]string) // most patterns are of one folder
	for _, pattern := range secretPaths {
		dir, name := filepath.Split(pattern)
		if !strings.Contains(name, "*") || strings.Contains(dir, "*") {
			found, err := filepath.Glob(pattern)
			if err != nil {
				return nil, fmt.Errorf("look for %s: %w", pattern, err)
			}
			paths = append(paths, found...)
			continue
		}
		names, ok := listed[dir]
		if !ok {
			var err error
			if names, err = namesIn(dir); err != nil {
				return nil, err
			}
			listed[dir] = names
		}
		for _, candidate := range names {
			matches, err := filepath.Match(name, candidate)
			if err != nil {
				return nil, fmt.Errorf("look for %s: %w", pattern, err)
			}
			if matches {
				paths = append(paths, dir+candidate)
			}
		}
	}
	return paths, nil
}

// namesIn lists a folder; one that is not there has none.
func namesIn(dir string) ([]string, error) {
	folder, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	return folder.Readdirnames(-1)
}

// homes are the home folders of this host's users, each once, but for those
// that are no one's: daemons are given / and folders of programs.
func homes() []string {
	users, err := user.ParsePasswdFile("/etc/passwd")
	if err != nil {
		return nil // no users: no homes
	}
	shared := []string{"/", "/bin", "/sbin", "/usr", "/usr/bin", "/usr/sbin", "/dev", "/proc", "/nonexistent", "/var", "/var/empty"}
	var dirs []string
	for _, u := range users {
		dir := filepath.Clean(u.Home)
		if filepath.IsAbs(dir) && !slices.Contains(shared, dir) && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// hostSockets are the path names of the unix sockets bound on this host. An
// overlay's copy of one cannot be connected to on every kernel, but to rely on
// that would be to rely on a gap.
func hostSockets() ([]string, error) {
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return nil, err
	}
	return boundSockets(table), nil
}

// boundSockets reads the path names in /proc/net/unix: eight columns, the last
// of which is the name and may hold spaces.
func boundSockets(table []byte) []string {
	var paths []string
	lines := bufio.NewScanner(bytes.NewReader(table))
	for lines.Scan() {
		if i := strings.Index(lines.Text(), " /"); i >= 0 {
			paths = append(paths, filepath.Clean(lines.Text()[i+1:]))
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// within says whether path is one of dirs or below one.
func within(path string, dirs ...string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool {
		return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
	})
}

// resolve follows the links of a path as far as it exists.
func resolve(path string) string {
	path = filepath.Clean(path)
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	if path == "/" || path == "." {
		return path
	}
	return filepath.Join(resolve(filepath.Dir(path)), filepath.Base(path))
}

// resolver resolves many paths as resolve does, and looks at each folder once.
type resolver map[string]string

func (r resolver) resolve(path string) string {
	path = filepath.Clean(path)
	if path == "/" || path == "." {
		return path
	}
	real, found := r[path]
	if !found {
		real = filepath.Join(r.resolve(filepath.Dir(path)), filepath.Base(path))
		if _, err := os.Readlink(real); err == nil {
			real = resolve(real)
		}
		r[path] = real
	}
	return real
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}
