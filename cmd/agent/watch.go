package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httputil"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"agentops/test/escape/attempt"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sighting is something where it must not be.
type sighting struct {
	Time    time.Time `json:"time"`
	What    string    `json:"what"`
	Attempt string    `json:"attempt,omitempty"` // whose it is, as far as can be told
	Profile string    `json:"profile,omitempty"` // likewise
}

// sightings are those of one test. They are safe for concurrent use.
type sightings struct {
	mu   sync.Mutex
	list []sighting
}

func (s *sightings) add(one sighting) {
	if one.Time.IsZero() {
		one.Time = time.Now()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.list) < 1<<14 {
		s.list = append(s.list, one)
	}
}

// take returns what was seen since the last call.
func (s *sightings) take() []sighting {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.list
	s.list = nil
	return list
}

// watch sees every frame that arrives at the outside.
type watch struct {
	file      *os.File
	own       net.HardwareAddr // of the outside's end
	sightings *sightings
	control   atomic.Uint64 // frames of what is allowed
}

// newWatch begins to watch a link of the current thread's namespace.
func newWatch(link *netlink.LinkAttrs, s *sightings) (*watch, error) {
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all))
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), "packet socket")
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch %s: %w", link.Name, err), file.Close())
	}
	return &watch{file: file, own: link.HardwareAddr, sightings: s}, nil
}

// run reads frames until the watch is closed.
func (w *watch) run() {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return
	}
	buf, control := make([]byte, 128<<10), make([]byte, 128)
	for {
		var n, controlLen int
		var recvErr error
		err := raw.Read(func(fd uintptr) bool {
			n, controlLen, _, _, recvErr = unix.Recvmsg(int(fd), buf, control, 0)
			return recvErr != unix.EAGAIN
		})
		if err != nil {
			return // closed
		}
		if recvErr == nil {
			w.frame(buf[:n], arrival(control[:controlLen]))
		}
	}
}

// lost is how many frames the kernel had no room for.
func (w *watch) lost() (uint32, error) {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	var stats *unix.TpacketStats
	ctlErr := raw.Control(func(fd uintptr) {
		stats, err = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	})
	if err = errors.Join(ctlErr, err); err != nil {
		return 0, fmt.Errorf("read what the watch has lost: %w", err)
	}
	return stats.Drops, nil
}

func (w *watch) close() error { return w.file.Close() }

// arrival is when the kernel has seen a frame.
func arrival(control []byte) time.Time {
	messages, err := unix.ParseSocketControlMessage(control)
	if err == nil && len(messages) > 0 && len(messages[0].Data) >= 16 {
		data := messages[0].Data
		return time.Unix(int64(binary.NativeEndian.Uint64(data)), int64(binary.NativeEndian.Uint64(data[8:])))
	}
	return time.Now()
}

// frame judges what has arrived: of the host's own neighbour discovery, of what
// the stage allows, or something that has escaped.
func (w *watch) frame(frame []byte, at time.Time) {
	if len(frame) < 14 || bytes.Equal(frame[6:12], w.own) {
		return // what the outside has sent itself
	}
	kind, packet := binary.BigEndian.Uint16(frame[12:]), frame[14:]
	var what string
	switch {
	case kind == unix.ETH_P_ARP:
		return
	case kind == unix.ETH_P_IP && len(packet) >= 20:
		header := int(packet[0]&15) * 4
		source, _ := netip.AddrFromSlice(packet[12:16])
		destination, _ := netip.AddrFromSlice(packet[16:20])
		what = w.segment(packet[9], source, destination, packet[min(header, len(packet)):])
	case kind == unix.ETH_P_IPV6 && len(packet) >= 40:
		source, _ := netip.AddrFromSlice(packet[8:24])
		destination, _ := netip.AddrFromSlice(packet[24:40])
		protocol, payload := packet[6], packet[40:]
		if protocol == unix.IPPROTO_HOPOPTS && len(payload) >= 8 {
			length := 8 + int(payload[1])*8
			protocol, payload = payload[0], payload[min(length, len(payload)):]
		}
		if protocol == unix.IPPROTO_ICMPV6 && len(payload) > 0 && isDiscovery(payload[0]) {
			return
		}
		what = w.segment(protocol, source, destination, payload)
	default:
		what = fmt.Sprintf("a frame of type %#04x", kind)
	}
	if what == "" {
		w.control.Add(1)
		return
	}
	w.sightings.add(sighting{Time: at, What: what, Attempt: marker(frame)})
}

// isDiscovery tells the messages by which a link's hosts find each other (RFC 4861,
// RFC 2710, RFC 3810).
func isDiscovery(kind byte) bool { return kind >= 130 && kind <= 136 || kind == 143 }

// segment describes what is not allowed of a packet's payload; "" if it is.
func (w *watch) segment(protocol byte, source, destination netip.Addr, data []byte) string {
	if isLateAnswer(protocol, data) {
		return ""
	}
	if (protocol != unix.IPPROTO_TCP && protocol != unix.IPPROTO_UDP && protocol != unix.IPPROTO_UDPLITE) || len(data) < 8 {
		return fmt.Sprintf("protocol %d from %s to %s, %d bytes", protocol, source, destination, len(data))
	}
	port := binary.BigEndian.Uint16(data[2:])
	switch {
	case protocol == unix.IPPROTO_TCP && destination == arenaOutside4 && (port == 80 || port == 443):
		return "" // the allowed host; what is said to it, its server looks at
	case protocol == unix.IPPROTO_UDP && port == 53:
		var query dns.Msg
		if query.Unpack(data[8:]) == nil && len(query.Question) == 1 && allowedName(query.Question[0].Name) {
			return ""
		}
	}
	name := map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_UDPLITE: "udplite"}[protocol]
	return fmt.Sprintf("%s to %s, %d bytes", name, netip.AddrPortFrom(destination, port), len(data))
}

// isLateAnswer tells what a host says of a name server's answer that nobody waits
// for any more: that the port it was sent to is closed.
func isLateAnswer(protocol byte, data []byte) bool {
	var header int // of the answer, which is quoted
	switch {
	case protocol == unix.IPPROTO_ICMP && len(data) >= 9 && data[0] == 3 && data[1] == 3:
		header = int(data[8]&15) * 4
	case protocol == unix.IPPROTO_ICMPV6 && len(data) >= 8 && data[0] == 1 && data[1] == 4:
		header = 40
	default:
		return false
	}
	quoted := data[8:]
	return len(quoted) >= header+2 && binary.BigEndian.Uint16(quoted[header:]) == 53
}

// marker finds the name of the attempt that some bytes are of.
func marker(data []byte) string {
	for _, mark := range []string{attempt.Marker, strings.ReplaceAll(attempt.Marker, ":", "-")} {
		if i := bytes.Index(data, []byte(mark)); i >= 0 {
			rest := data[i+len(mark):]
			end := bytes.IndexFunc(rest, func(r rune) bool {
				return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '.'
			})
			if end >= 0 {
				rest = rest[:end]
			}
			return string(rest[:min(len(rest), 40)])
		}
	}
	return ""
}

// reboundAddress reads the address that a name below attempt.Rebound spells:
// "a-" and its bytes.
func reboundAddress(name string) (netip.Addr, bool) {
	label, ok := strings.CutSuffix(dns.CanonicalName(name), "."+attempt.Rebound+".")
	if !ok {
		return netip.Addr{}, false
	}
	bytes, err := hex.DecodeString(strings.TrimPrefix(label, "a-"))
	if err != nil {
		return netip.Addr{}, false
	}
	return netip.AddrFromSlice(bytes)
}

// serveSite is the allowed host: it answers requests that can be understood in
// one way, and are to it, and sees all others.
func serveSite(conn net.Conn, sightings *sightings) {
	defer conn.Close()
	reader := bufio.NewReader(conn)
	for {
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second)) // fails on a closed connection
		head, err := readHead(reader)
		if err != nil || bytes.HasPrefix(head, []byte("PRI * HTTP/2")) {
			return // it broke off, or speaks what this host does not
		}
		request, why := readStrictly(head)
		if why != "" {
			sightings.add(sighting{What: "at the allowed host: " + why, Attempt: marker(head)})
			return
		}
		if !request.skipBody(reader) {
			return
		}
		body := attempt.Welcome + "\n"
		if _, err := fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
			return
		}
	}
}

const maxHead = 8 << 20

// readHead reads up to the empty line that ends a request's head.
func readHead(reader *bufio.Reader) ([]byte, error) {
	var head []byte
	for len(head) < maxHead {
		line, err := reader.ReadSlice('\n')
		head = append(head, line...)
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return head, err
		}
		if bytes.HasSuffix(head, []byte("\r\n\r\n")) || bytes.HasSuffix(head, []byte("\n\n")) {
			return head, nil
		}
	}
	return head, errors.New("the head has no end")
}

// siteRequest is how long a request's body is.
type siteRequest struct {
	length  int64
	chunked bool
}

// readStrictly reads a request's head as strictly as can be (RFC 9112), and says
// what about it has no meaning, more than one, or is not for the allowed host.
func readStrictly(head []byte) (r siteRequest, why string) {
	lines := strings.Split(strings.TrimSuffix(string(head), "\r\n\r\n"), "\r\n")
	words := strings.Split(lines[0], " ")
	if len(words) != 3 || words[2] != "HTTP/1.1" || !strings.HasPrefix(words[1], "/") {
		return r, fmt.Sprintf("request line %.60q", lines[0])
	}
	if strings.Contains(words[1], "/hidden") {
		return r, fmt.Sprintf("a request that was hidden in another: %.60q", lines[0])
	}
	hosts, lengths := 0, 0
	for _, line := range lines {
		if strings.ContainsAny(line, "\r\n\x00") {
			return r, fmt.Sprintf("a line with control characters: %.60q", line)
		}
	}
	for _, line := range lines[1:] {
		name, value, ok := strings.Cut(line, ":")
		if !ok || name == "" || strings.ContainsAny(name, " \t") {
			return r, fmt.Sprintf("header line %.60q", line)
		}
		value = strings.Trim(value, " \t")
		switch strings.ToLower(name) {
		case "host":
			hosts++
			host := strings.ToLower(strings.TrimSuffix(strings.TrimSuffix(value, ":80"), "."))
			if host != attempt.Allowed {
				return r, fmt.Sprintf("a request to the host %.60q", value)
			}
		case "content-length":
			lengths++
			n, err := strconv.ParseUint(value, 10, 62)
			if err != nil || strings.Trim(value, "0123456789") != "" {
				return r, fmt.Sprintf("length %.60q", value)
			}
			r.length = int64(n)
		case "transfer-encoding":
			if r.chunked || value != "chunked" {
				return r, fmt.Sprintf("transfer encoding %.60q", value)
			}
			r.chunked = true
		}
	}
	switch {
	case hosts != 1:
		return r, fmt.Sprintf("%d hosts in a request", hosts)
	case lengths > 1 || lengths == 1 && r.chunked:
		return r, "a body with two lengths"
	}
	return r, ""
}

// skipBody reads over a request's body; false: it broke off.
func (r siteRequest) skipBody(reader *bufio.Reader) bool {
	if !r.chunked {
		_, err := io.CopyN(io.Discard, reader, r.length)
		return err == nil
	}
	if _, err := io.Copy(io.Discard, httputil.NewChunkedReader(reader)); err != nil {
		return false
	}
	for { // trailers
		line, err := reader.ReadString('\n')
		if err != nil {
			return false
		}
		if strings.TrimSpace(line) == "" {
			return true
		}
	}
}
