package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"agentops/test/escape/attempt"

	"golang.org/x/sys/unix"
)

// credentialServer finds the one of the run among what is listened to.
func credentialServer() (netip.AddrPort, bool) {
	for _, to := range listeners() {
		if to.Addr().IsLoopback() {
			return to, true
		}
	}
	return netip.AddrPort{}, false
}

// credentialProbes look for an identity.
func credentialProbes() []probe {
	list := []probe{
		{name: "aws-environment", try: func(t *try) verdict {
			for _, entry := range os.Environ() {
				if strings.HasPrefix(entry, "AWS_SECRET") || strings.HasPrefix(entry, "AWS_SESSION") || strings.HasPrefix(entry, "AWS_ACCESS") {
					return t.reached("%s", entry)
				}
			}
			return t.environments()
		}},
		{name: "aws-files", try: func(t *try) verdict {
			for _, path := range []string{"/root/.aws/credentials", "/root/.aws/config", "/root/.aws/sso", "/etc/aws", "/etc/boto.cfg"} {
				if v := t.hiddenPath(path); v.outcome != attempt.Blocked {
					return v
				}
			}
			return t.say(attempt.Blocked, "none")
		}},
		{name: "aws-init-environ", try: func(t *try) verdict {
			t.start()
			_, err := os.ReadFile("/proc/1/environ")
			return t.judge(unwrap(err))
		}},
		{name: "server-bind", try: func(t *try) verdict { return t.takeOver(0) }},
		{name: "server-bind-reuse", try: func(t *try) verdict { return t.takeOver(unix.SO_REUSEADDR) }},
		{name: "server-bind-share", try: func(t *try) verdict { return t.takeOver(unix.SO_REUSEPORT) }},
	}
	ask := func(name string, lines func(t *try, server string) string) {
		list = append(list, probe{name: name, record: attempt.Credential, try: func(t *try) verdict {
			to, ok := credentialServer()
			if !ok {
				return t.silent("nobody listens on the loopback interface")
			}
			return t.requestAt(to, 1, lines(t, to.String()))
		}})
	}
	get := func(path, host, further string) string {
		return "GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\n" + further + "Connection: close\r\n\r\n"
	}
	ask("token-absent", func(_ *try, s string) string { return get("/v1/process/aws", s, "") })
	ask("token-guessed", func(_ *try, s string) string {
		return get("/v1/process/aws", s, "Authorization: "+strings.Repeat("0", 64)+"\r\n")
	})
	ask("token-empty", func(_ *try, s string) string { return get("/v1/container/aws", s, "Authorization: \r\n") })
	ask("token-bearer", func(_ *try, s string) string {
		return get("/v1/container/aws", s, "Authorization: Bearer "+strings.Repeat("a", 64)+"\r\n")
	})
	ask("token-in-query", func(_ *try, s string) string { return get("/v1/process/aws?Authorization=0", s, "") })
	ask("rebound-host", func(*try, string) string { return get("/v1/process/aws", attempt.Refused, "") })
	ask("rebound-localhost", func(_ *try, s string) string {
		_, port, _ := strings.Cut(s, ":")
		return get("/v1/process/aws", "localhost:"+port, "")
	})
	ask("path-dots", func(_ *try, s string) string { return get("/v1/process/../../etc/passwd", s, "") })
	ask("path-other-grant", func(_ *try, s string) string { return get("/v1/process/another", s, "") })
	ask("method-put", func(_ *try, s string) string {
		return "PUT /v1/process/aws HTTP/1.1\r\nHost: " + s + "\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
	})
	for i := range list {
		list[i].class = "credentials"
		if list[i].name == "path-dots" {
			list[i].name = "server-dots"
		}
	}
	return list
}

// takeOver listens where the credential server does.
func (t *try) takeOver(option int) verdict {
	to, ok := credentialServer()
	if !ok {
		return t.silent("nobody listens on the loopback interface")
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return t.judge(err)
	}
	defer unix.Close(fd)
	if option != 0 {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1)
	}
	_, sa := sockaddr(to)
	t.start()
	if err = unix.Bind(fd, sa); err == nil {
		err = unix.Listen(fd, 1)
	}
	return t.judge(err, unix.EADDRINUSE)
}

// caProbes look for the key of the run's authority.
func caProbes() []probe {
	list := []probe{
		{name: "ca-files", try: func(t *try) verdict { return t.keyInFiles() }},
		{name: "ca-memory", try: func(t *try) verdict { return t.keyInMemory() }},
		{name: "ca-init-memory", try: func(t *try) verdict {
			t.start()
			found, err := memoryHas(1, "PRIVATE KEY-----", t.stage.Secret)
			if err == nil && found != "" {
				return t.reached("%q is in init's memory", found)
			}
			return t.judge(unwrap(err))
		}},
		{name: "ca-host-key", try: func(t *try) verdict { return t.hiddenPath(filepath.Join(t.stage.State, "keys")) }},
		{name: "ca-constraints", try: func(t *try) verdict { return t.constraints() }},
		{name: "agentops-write", try: func(t *try) verdict {
			t.start()
			fd, err := unix.Open("/agentops/ca-bundle.pem", unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				unix.Close(fd)
			}
			return t.judge(err, unix.EROFS)
		}},
		{name: "helper-write", try: func(t *try) verdict {
			t.start()
			fd, err := unix.Open("/agentops/helper", unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				unix.Close(fd)
			}
			return t.judge(err, unix.EROFS, unix.ETXTBSY)
		}},
		{name: "agent-program", try: func(t *try) verdict {
			// What was executed last by who set the run up (CVE-2019-5736).
			t.start()
			fd, err := unix.Open("/proc/1/exe", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				unix.Close(fd)
			}
			return t.judge(err)
		}},
	}
	for i := range list {
		list[i].class = "ca"
	}
	return list
}

// keyInFiles reads everything that is small, where something of the run's is kept.
func (t *try) keyInFiles() verdict {
	found := ""
	t.start()
	for _, root := range []string{"/agentops", "/run", "/dev/shm", "/root", "/etc/ssl", "/etc/pki"} {
		_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() || path == "/agentops/init" {
				return nil //nolint:nilerr // what cannot be read has no secret
			}
			content, err := os.ReadFile(path)
			if err == nil && len(content) < 4<<20 && bytes.Contains(content, []byte("PRIVATE KEY-----")) {
				found = path
				return filepath.SkipAll
			}
			return nil
		})
	}
	if found != "" {
		return t.reached("a private key in %s", found)
	}
	return verdict{attempt.Blocked, "none", 0} // as long as it takes to look
}

func (t *try) keyInMemory() verdict {
	t.start()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return t.judge(unwrap(err))
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() || pid == os.Getppid() {
			continue // these words are in our own
		}
		if found, _ := memoryHas(pid, "PRIVATE KEY-----", t.stage.Secret); found != "" {
			return t.reached("%q is in the memory of process %d", found, pid)
		}
	}
	return verdict{attempt.Blocked, "none", 0}
}

// constraints looks at the run's authority: one that outlives the run, or that
// could make others, would be worth stealing.
func (t *try) constraints() verdict {
	t.start()
	content, err := os.ReadFile("/agentops/ca-bundle.pem")
	if err != nil {
		return t.silent("%v", err)
	}
	var last *x509.Certificate
	for {
		var block *pem.Block
		if block, content = pem.Decode(content); block == nil {
			break
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			last = cert
		}
	}
	switch {
	case last == nil:
		return t.silent("there is no certificate in the bundle")
	case !last.MaxPathLenZero:
		return t.reached("the run's authority could make others")
	}
	return verdict{attempt.Blocked, "it makes leaves alone", 0}
}

// journalProbes read, write and forge the record.
func journalProbes() []probe {
	forged := "x\n{\"seq\":0,\"type\":\"forged\",\"prev\":\"\"}\n\x1b[2J\x1b]0;forged\x07\r"
	list := []probe{
		{name: "journal-state", try: func(t *try) verdict { return t.hiddenPath(t.stage.State) }},
		{name: "journal-runs", try: func(t *try) verdict { return t.hiddenPath(filepath.Join(t.stage.State, "runs")) }},
		{name: "journal-default", try: func(t *try) verdict { return t.hiddenPath("/var/lib/agentops") }},
		{name: "journal-live", try: func(t *try) verdict { return t.hiddenPath("/run/agentops") }},
		{name: "journal-by-root", try: func(t *try) verdict {
			t.start()
			_, err := os.Stat("/proc/1/root" + t.stage.State)
			return t.judge(unwrap(err), unix.ENOENT)
		}},
		{name: "journal-by-fd", try: func(t *try) verdict { return t.initFiles() }},
		{name: "forged-name", record: attempt.Flow, try: func(t *try) verdict {
			setComm(forged)
			return t.tcp(at4(443))
		}},
		{name: "forged-name-udp", record: attempt.Refusal, try: func(t *try) verdict {
			setComm("\x1b[31m\n\"}{\xff\xfe")
			return t.datagram(at4(9999), unix.SOCK_DGRAM, 0, t.payload())
		}},
		{name: "forged-path", record: attempt.Flow, try: func(t *try) verdict { return t.fromHostilePath(forged) }},
		{name: "forged-url", record: attempt.Flow, try: func(t *try) verdict {
			path := "/%0a%7b%22type%22:%22forged%22%7d%1b[2J\"},{\"type\":\"forged\""
			return t.get(attempt.Refused, attempt.Refused, path)
		}},
		{name: "forged-agent", record: attempt.Flow, try: func(t *try) verdict {
			return t.request(attempt.Allowed, 80, 1, "GET / HTTP/1.1\r\nHost: "+attempt.Allowed+
				"\r\nUser-Agent: \"},{\"type\":\"forged\",\"x\":\"\t\xc2\x9b2J\u2028\r\nConnection: close\r\n\r\n")
		}},
		{name: "forged-host", record: attempt.Flow, try: func(t *try) verdict {
			return t.request(attempt.Allowed, 80, 1, "GET / HTTP/1.1\r\nHost: \"},{\"type\":\"forged\"\r\nConnection: close\r\n\r\n")
		}},
		{name: "forged-label", record: attempt.Query, try: func(t *try) verdict {
			query := []byte{16, 146, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
			label := "a\n{\"type\":\"forged\"}\x1b[2J\x00"
			query = append(append(append(query, byte(len(label))), label...), 0, 0, 1, 0, 1)
			t.start()
			answer, err := exchange(server, query)
			if err != nil {
				return t.blocked(err)
			}
			return t.judgeAnswer(answer)
		}},
		{name: "forged-sni", record: attempt.Flow, try: func(t *try) verdict {
			return t.hello(at4(443), "\"},{\"type\":\"forged\"\n\x1b[2J", "")
		}},
		{name: "forged-alpn", record: attempt.Flow, try: func(t *try) verdict {
			return t.hello(at4(443), attempt.Refused, "\n{\"type\":\"forged\"}\x1b")
		}},
		{name: "huge-url", record: attempt.Flow, try: func(t *try) verdict {
			return t.get(attempt.Refused, attempt.Refused, "/"+strings.Repeat("a", 900<<10))
		}},
		{name: "huge-agent", record: attempt.Flow, try: func(t *try) verdict {
			return t.request(attempt.Refused, 80, 1, "GET / HTTP/1.1\r\nHost: "+attempt.Refused+
				"\r\nUser-Agent: "+strings.Repeat("b", 900<<10)+"\r\nConnection: close\r\n\r\n")
		}},
	}
	for i := range list {
		list[i].class = "journal"
	}
	return list
}
