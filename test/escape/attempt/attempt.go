// Package attempt is what the escape program and who judges it tell each other:
// the stage that the attempts are made on, and how each of them went.
package attempt

// Classes are those of attempts, in the order of their tables.
var Classes = []string{
	"address", "transport", "send", "ipv6", "family", "exemption", "tampering", "host", "names",
	"identity", "parsing", "metadata", "credentials", "ca", "journal", "time",
}

// Outcome is how an attempt went, as far as who made it could see. What has
// arrived where, only the other side of the boundary knows.
type Outcome string

// The outcomes.
const (
	Blocked       Outcome = "blocked"        // by an errno, a reset or an answer
	Relayed       Outcome = "relayed"        // by the proxy, to a host that is allowed: it must have one meaning
	Reached       Outcome = "reached"        // what should not be had
	Silent        Outcome = "silent"         // neither an error nor an answer in time
	NotApplicable Outcome = "not applicable" // the host or the profile has no such thing
)

// Record says which events of the journal can show an attempt. One of them must
// name its process.
type Record string

// The records. An attempt without one leaves none: what is not there, or what
// the kernel refuses by its own rules, is refused without anybody's knowledge.
const (
	None       Record = ""
	Flow       Record = "flow"       // flow.open, refused
	Refusal    Record = "refusal"    // refused
	Query      Record = "query"      // dns.query, refused
	Credential Record = "credential" // credential.serve
)

// Result is one attempt. Its JSON form is a line of the escape program's output.
type Result struct {
	Name    string  `json:"name"`
	Class   string  `json:"class"`
	Outcome Outcome `json:"outcome"`
	Detail  string  `json:"detail"` // the errno, the answer, what was reached, or why not applicable
	Micros  int64   `json:"micros"` // from the system call to the error or answer
	PID     int     `json:"pid"`    // in the numbers of who made it
	Record  Record  `json:"record,omitempty"`
}

// Marker precedes an attempt's name in all that it sends, so that what arrives
// can be told.
const Marker = "agentops-escape:"

// The hosts of the stage. Allowed is the one that an allow rule and a pin name;
// below Rebound, labels say which address the name leads to; Refused is in no
// rule.
const (
	Allowed = "allowed.selftest"
	Rebound = "rebound.selftest"
	Refused = "refused.selftest"
)

// DatagramPort is the port of UDP at which Allowed, and the names below Rebound, are
// in a rule.
const DatagramPort = 123

// Welcome is in every answer of the allowed host.
const Welcome = "the outside answers"

// Stage is what the host tells the escape program of itself.
type Stage struct {
	// Register is the path of a unix socket that takes the name of an attempt
	// from the process that makes it, and answers with a byte.
	Register string `json:"register"`

	Host4 string `json:"host4"` // the host's own addresses
	Host6 string `json:"host6"`
	Port  uint16 `json:"port"` // of a listener on the host's loopback

	Kernel   Kernel   `json:"kernel"`
	Paths    []string `json:"paths"`    // of SecretPaths, those that this host has something in
	Canaries []string `json:"canaries"` // files of the host with Secret in them
	Secret   string   `json:"secret"`   // never to be seen
	PID      int      `json:"pid"`      // a process of the host
	Abstract string   `json:"abstract"` // an abstract unix socket of the host, without its NUL
	Sockets  []string `json:"sockets"`  // path names of unix sockets of the host
	State    string   `json:"state"`    // the state folder
}

// Kernel is what the host's kernel has, whatever a run is let have of it.
type Kernel struct {
	Families  []int `json:"families"`  // address families
	Netlinks  []int `json:"netlinks"`  // protocols of AF_NETLINK
	Protocols []int `json:"protocols"` // protocols of AF_INET beside TCP and UDP
	Calls     []int `json:"calls"`     // numbers of system calls, of those that were asked for
	Compat    bool  `json:"compat"`    // 32-bit system calls
	X32       bool  `json:"x32"`       // x32 system calls
}

// SecretPaths are where hosts keep what is theirs: a list of its own, so that an
// omission in the one that hides them is seen.
var SecretPaths = []string{
	"/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-", "/etc/sudoers", "/etc/sudoers.d", "/etc/security/opasswd",
	"/etc/ssl/private", "/etc/pki/tls/private", "/etc/ssh/ssh_host_rsa_key", "/etc/ssh/ssh_host_ecdsa_key",
	"/etc/ssh/ssh_host_ed25519_key", "/etc/krb5.keytab", "/etc/wireguard", "/etc/openvpn", "/etc/letsencrypt",
	"/etc/NetworkManager/system-connections", "/etc/kubernetes", "/etc/rancher", "/etc/docker", "/etc/cloud",
	"/var/lib/cloud", "/var/lib/docker", "/var/lib/containerd", "/var/lib/containers", "/var/lib/kubelet", "/var/lib/etcd",
	"/var/lib/libvirt", "/var/lib/amazon", "/var/lib/waagent", "/var/backups", "/var/spool/cron", "/var/mail",
	"/var/log/journal", "/var/log/auth.log", "/var/log/audit", "/var/crash", "/var/lib/systemd/coredump", "/boot",
	"/etc/agentops", "/etc/apt/auth.conf.d", "/etc/vault.d", "/etc/gitlab-runner", "/etc/cryptsetup-keys.d", "/swapfile",
}
