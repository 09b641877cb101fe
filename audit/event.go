package audit

// SchemaVersion is the version of the journal's line format, carried by
// run.start. It grows when a field changes its meaning or goes away, not when
// one is added.
const SchemaVersion = 1

// Event is one thing that happened in a run. Its JSON form, an object, follows
// the common fields (seq, time, run, type, prev) in the journal's line.
//
// Durations are milliseconds. Bytes "sent" go away from the run, "received" ones
// towards it. docs/audit.md describes every field.
type Event interface {
	// Type is the event's name: "run.start", "http.request", ...
	Type() string
}

// RunStart opens every journal.
type RunStart struct {
	Schema    int      `json:"schema"`
	Name      string   `json:"name"`
	Agent     string   `json:"agent"`
	Kernel    string   `json:"kernel"`
	Host      string   `json:"host"`
	Command   []string `json:"command"`
	Workspace string   `json:"workspace"`
	Rootfs    string   `json:"rootfs,omitempty"`
	Grants    []string `json:"grants"`
	CapAdd    []string `json:"cap_add,omitempty"` // beside the usual capabilities: "CAP_IPC_LOCK"
	Limits    Limits   `json:"limits"`
	Policy    Policy   `json:"policy"`
}

// Limits bound what a run takes of the host; 0 is no limit.
type Limits struct {
	Memory    int64   `json:"memory,omitempty"` // bytes, swap included
	CPUs      float64 `json:"cpus,omitempty"`   // processors' worth of time
	PIDs      int64   `json:"pids,omitempty"`   // processes and threads
	OpenFiles uint64  `json:"open_files,omitempty"`
}

// Policy is the network policy that a run was started with, rules as they were
// written. What a host-wide file denies is in Deny.
type Policy struct {
	Mode    string   `json:"mode"`
	Allow   []string `json:"allow"`
	Deny    []string `json:"deny"`
	Resolve []string `json:"resolve"`
	// Passthrough are the hosts whose TLS is not opened.
	Passthrough []string `json:"passthrough,omitempty"`
	File        string   `json:"file,omitempty"`  // the host-wide one that narrowed it
	Within      []string `json:"within,omitzero"` // that file's allow list, when it has one

	Limits NetworkLimits `json:"limits"`
}

// NetworkLimits bound what a run takes of the proxy.
type NetworkLimits struct {
	MaxFlows           int   `json:"max_flows"`            // open at once
	MaxHeader          int   `json:"max_header"`           // bytes of a request's head
	HandshakeTimeoutMS int64 `json:"handshake_timeout_ms"` // to dial, and for TLS on either side
	HeaderTimeoutMS    int64 `json:"header_timeout_ms"`    // for a request's head
	IdleTimeoutMS      int64 `json:"idle_timeout_ms"`      // between two requests
	DatagramTimeoutMS  int64 `json:"datagram_timeout_ms"`  // between two datagrams of a flow
}

// RunExit closes every complete journal.
type RunExit struct {
	ExitCode   int    `json:"exit_code"`
	Signal     string `json:"signal,omitempty"`
	Error      string `json:"error,omitempty"`
	DurationMS int64  `json:"duration_ms"`
	Totals     Totals `json:"totals"`
	Kernel     Counts `json:"kernel_counts"`
}

// Totals counts a journal's own events.
type Totals struct {
	Counts
	Requests uint64 `json:"requests"`
	Refused  uint64 `json:"refused"` // by anyone
	Hosts    uint64 `json:"hosts"`
	Unknown  uint64 `json:"unknown"` // flows, datagrams and refusals whose process is not known
}

// Process is who did something, as the kernel knew it at that moment. A process
// chooses its own Comm.
type Process struct {
	PID    int    `json:"pid"`    // in the host's numbers
	Parent int    `json:"parent"` // likewise
	UID    uint32 `json:"uid"`
	Comm   string `json:"comm"`          // at most 15 bytes
	Exe    string `json:"exe,omitempty"` // path of the executable, in the run
}

// FlowOpen says that a connection was accepted from the run, before its first
// byte is forwarded, or that a first datagram was.
type FlowOpen struct {
	Flow        uint64   `json:"flow"`
	Protocol    string   `json:"protocol"` // "tls", "http", "dns", "opaque", "udp"
	Source      string   `json:"source"`
	Destination string   `json:"destination"` // ADDRESS:PORT as the client dialled it
	Host        string   `json:"host"`        // the name behind the destination, else its address
	Port        uint16   `json:"port"`
	SNI         string   `json:"sni,omitempty"`         // of a TLS hello, as it was sent
	JA4         string   `json:"ja4,omitempty"`         // fingerprint of a TLS hello
	Passthrough bool     `json:"passthrough,omitempty"` // TLS that is not opened
	Process     *Process `json:"process,omitempty"`     // who connected
}

// FlowClose ends a flow.open.
type FlowClose struct {
	Flow          uint64 `json:"flow"`
	Upstream      string `json:"upstream,omitempty"` // ADDRESS:PORT dialled for a flow that is not opened
	BytesSent     int64  `json:"bytes_sent"`         // on the run's connection, TLS included
	BytesReceived int64  `json:"bytes_received"`     // likewise
	DurationMS    int64  `json:"duration_ms"`
	Error         string `json:"error,omitempty"`

	// Of a flow of "udp". Dropped are those of both that were not passed on.
	DatagramsSent     uint64 `json:"datagrams_sent,omitempty"`
	DatagramsReceived uint64 `json:"datagrams_received,omitempty"`
	Dropped           uint64 `json:"dropped,omitempty"`
}

// TLSFailure is a handshake that did not complete, on either side of the proxy.
type TLSFailure struct {
	Flow    uint64   `json:"flow"`
	Side    string   `json:"side"` // "client": the run's program; "upstream": the server
	Host    string   `json:"host"`
	Error   string   `json:"error"`
	Process *Process `json:"process,omitempty"` // that connected
}

// HTTPRequest is one exchange, written when the response's last byte has passed
// or the exchange broke.
type HTTPRequest struct {
	Flow          uint64   `json:"flow"`
	Protocol      string   `json:"protocol"` // as spoken with the client: "HTTP/1.1", "HTTP/2.0"
	Method        string   `json:"method"`
	URL           string   `json:"url"` // secrets in the query redacted
	Upstream      string   `json:"upstream,omitempty"`
	Grants        []string `json:"grants,omitempty"` // whose headers were put on the request
	Status        int      `json:"status"`           // as the client got it; 0: none
	BytesSent     int64    `json:"bytes_sent"`       // of the request's body
	BytesReceived int64    `json:"bytes_received"`   // of the response's body
	DurationMS    int64    `json:"duration_ms"`
	UserAgent     string   `json:"user_agent,omitempty"`
	Error         string   `json:"error,omitempty"`
}

// DNSQuery is one question to the run's resolver and what it was told.
type DNSQuery struct {
	Flow      uint64   `json:"flow,omitempty"` // of a question over TCP
	Transport string   `json:"transport"`      // "udp", "tcp"
	Server    string   `json:"server"`         // ADDRESS:PORT as the client asked it
	Name      string   `json:"name"`
	QType     string   `json:"qtype"`
	RCode     string   `json:"rcode"`
	Answers   []string `json:"answers"`
	Reason    string   `json:"reason,omitempty"` // why connections to the name will be refused
	Rule      string   `json:"rule,omitempty"`
	Process   *Process `json:"process,omitempty"` // who asked
}

// CredentialServe is one answer of the credential server to a program in the
// run.
type CredentialServe struct {
	Grant       string   `json:"grant"`
	Protocol    string   `json:"protocol"` // "process", "container"
	Status      int      `json:"status"`
	AccessKeyID string   `json:"access_key_id,omitempty"`
	Expiration  string   `json:"expiration,omitempty"` // RFC 3339, UTC
	Error       string   `json:"error,omitempty"`      // the reason of a refusal
	Process     *Process `json:"process,omitempty"`    // who asked
}

// CredentialRefresh is one AssumeRole made for the run.
type CredentialRefresh struct {
	Grant       string `json:"grant"`
	Role        string `json:"role"`
	Session     string `json:"session"`
	AccessKeyID string `json:"access_key_id,omitempty"`
	Expiration  string `json:"expiration,omitempty"` // RFC 3339, UTC
	DurationMS  int64  `json:"duration_ms"`
	Error       string `json:"error,omitempty"` // STS's code, or what went wrong
}

// Refused is something that the run tried and was not let do.
type Refused struct {
	Flow        uint64   `json:"flow,omitempty"` // 0: refused by the kernel, before any flow
	Protocol    string   `json:"protocol"`       // "tcp", "udp", "tls", "http", "dns", "opaque", "syscall"
	Destination string   `json:"destination,omitempty"`
	Host        string   `json:"host,omitempty"`
	Port        uint16   `json:"port,omitempty"`
	Method      string   `json:"method,omitempty"`
	URL         string   `json:"url,omitempty"`
	Call        string   `json:"call,omitempty"` // of "syscall": "socket(AF_VSOCK, SOCK_STREAM, 0)"
	Reason      string   `json:"reason"`         // a stable word: "not-allowed", "denied", ReasonProtocol, ...
	Rule        string   `json:"rule,omitempty"`
	Detail      string   `json:"detail,omitempty"`
	Process     *Process `json:"process,omitempty"` // who tried
}

// ReasonProtocol is that of the kernel's own refusals, and of no others.
const ReasonProtocol = "protocol"

// What can be lost.
const (
	LostDatagrams = "datagrams" // to the resolver
	LostRelayed   = "relayed"   // to the relays
	LostRefusals  = "refusals"  // of the kernel's own
)

// Lost counts what happened too fast for an event each.
type Lost struct {
	What  string `json:"what"` // LostDatagrams, LostRelayed or LostRefusals
	Count uint64 `json:"count"`
}

// Type implements Event.
func (Lost) Type() string { return "lost" }

// Type implements Event.
func (RunStart) Type() string { return "run.start" }

// Type implements Event.
func (RunExit) Type() string { return "run.exit" }

// Type implements Event.
func (FlowOpen) Type() string { return "flow.open" }

// Type implements Event.
func (FlowClose) Type() string { return "flow.close" }

// Type implements Event.
func (TLSFailure) Type() string { return "tls.failure" }

// Type implements Event.
func (HTTPRequest) Type() string { return "http.request" }

// Type implements Event.
func (DNSQuery) Type() string { return "dns.query" }

// Type implements Event.
func (CredentialServe) Type() string { return "credential.serve" }

// Type implements Event.
func (CredentialRefresh) Type() string { return "credential.refresh" }

// Type implements Event.
func (Refused) Type() string { return "refused" }
