package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	credentialTimeout = 4 * time.Second // the AWS SDKs have none of their own
	maxAnswer         = 64 << 10        // bytes, of the server's whole answer
)

const credentialUsage = "usage: helper credential GRANT"

// credential prints the credentials of one grant as an AWS credential_process
// does: JSON on stdout and nothing else, or one line of reason on stderr.
func credential(args []string, stdout, stderr io.Writer, getenv func(string) string) int {
	timer := time.AfterFunc(credentialTimeout, func() {
		fmt.Fprintf(stderr, "agentops: the credential server has not answered in %s\n", credentialTimeout)
		os.Exit(1)
	})
	defer timer.Stop()
	if len(args) != 1 || strings.ContainsAny(args[0], "/ \r\n") {
		fmt.Fprintln(stderr, credentialUsage)
		return 1
	}
	body, err := fetch(getenv("AGENTOPS_CREDENTIAL_URL"), getenv("AGENTOPS_CREDENTIAL_TOKEN_FILE"), args[0])
	if err == nil {
		_, err = stdout.Write(body)
	}
	if err != nil {
		fmt.Fprintf(stderr, "agentops: credentials of grant %s: %v\n", args[0], err)
		return 1
	}
	return 0
}

// fetch asks the run's credential server. It speaks just enough HTTP/1.1 for it,
// on a plain socket: the net packages would be most of this program, and of its
// time to start.
func fetch(url, tokenFile, grant string) ([]byte, error) {
	port, err := parseURL(url)
	if err != nil {
		return nil, err
	}
	token, err := os.ReadFile(tokenFile)
	if err != nil {
		return nil, fmt.Errorf("read AGENTOPS_CREDENTIAL_TOKEN_FILE: %w", err)
	}
	request := "GET /v1/process/" + grant + " HTTP/1.1\r\n" +
		"Host: 127.0.0.1:" + strconv.Itoa(port) + "\r\n" +
		"Authorization: " + strings.TrimSpace(string(token)) + "\r\n" +
		"Connection: close\r\n\r\n"
	answer, err := exchange(port, []byte(request))
	if err != nil {
		return nil, fmt.Errorf("ask the credential server: %w", err)
	}
	return parseAnswer(answer)
}

// parseURL takes http://127.0.0.1:PORT and nothing else: the token goes nowhere
// but to the run's own loopback.
func parseURL(url string) (port int, err error) {
	digits, ok := strings.CutPrefix(url, "http://127.0.0.1:")
	if ok {
		port, err = strconv.Atoi(digits)
	}
	if !ok || err != nil || port < 1 || port > 65535 {
		return 0, fmt.Errorf("AGENTOPS_CREDENTIAL_URL is %q, not http://127.0.0.1:PORT: is this a run with a grant?", url)
	}
	return port, nil
}

// exchange sends a request to a port on loopback and reads the answer to its end.
func exchange(port int, request []byte) ([]byte, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	defer syscall.Close(fd)
	if err := retry(func() error {
		return syscall.Connect(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
	}); err != nil {
		return nil, fmt.Errorf("connect to 127.0.0.1:%d: %w", port, err)
	}
	for len(request) > 0 {
		n, err := syscall.Write(fd, request)
		if err != nil && err != syscall.EINTR {
			return nil, fmt.Errorf("write: %w", err)
		}
		request = request[max(n, 0):]
	}
	var answer []byte
	buf := make([]byte, 8<<10)
	for {
		n, err := syscall.Read(fd, buf)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return nil, fmt.Errorf("read: %w", err)
		case n == 0:
			return answer, nil
		case len(answer)+n > maxAnswer:
			return nil, errors.New("the answer is too long")
		default:
			answer = append(answer, buf[:n]...)
		}
	}
}

// retry calls f again when a signal has interrupted it. A connect that goes on
// in the meantime says so.
func retry(f func() error) error {
	for {
		switch err := f(); err {
		case syscall.EINTR, syscall.EALREADY:
		case syscall.EISCONN:
			return nil
		default:
			return err
		}
	}
}

// errorHeader holds a failure's reason in one line.
const errorHeader = "agentops-error:"

// parseAnswer returns the body of a 200 with a Content-Length, or the reason of
// another status.
func parseAnswer(answer []byte) ([]byte, error) {
	head, body, ok := bytes.Cut(answer, []byte("\r\n\r\n"))
	status, headers, _ := bytes.Cut(head, []byte("\r\n"))
	version, status, _ := bytes.Cut(status, []byte(" "))
	if !ok || !bytes.HasPrefix(version, []byte("HTTP/1.")) {
		return nil, errors.New("the answer of the credential server is no HTTP")
	}
	length, reason := -1, ""
	for header := range bytes.SplitSeq(headers, []byte("\r\n")) {
		name, value, _ := strings.Cut(string(header), ":")
		switch value = strings.TrimSpace(value); strings.ToLower(name) + ":" {
		case "content-length:":
			var err error
			if length, err = strconv.Atoi(value); err != nil {
				return nil, errors.New("the answer of the credential server has no valid length")
			}
		case errorHeader:
			reason = oneLine(value)
		}
	}
	if code, _, _ := bytes.Cut(status, []byte(" ")); string(code) != "200" {
		if reason == "" {
			reason = "the credential server answered " + oneLine(string(status))
		}
		return nil, errors.New(reason)
	}
	if length != len(body) {
		return nil, errors.New("the answer of the credential server is cut off")
	}
	return body, nil
}

// oneLine keeps what a terminal can show.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return -1
		}
		return r
	}, text)
}
