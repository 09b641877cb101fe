package helper

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// programs are the helper as it goes into a run, and one of the same source that
// stops at what C leaves undefined; inits, a run's init, likewise.
var programs, inits map[string]string

// exitUndefined is the code of the latter; the programs themselves have no such.
const exitUndefined = 99

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "helper-test-")
	if err != nil {
		panic(err)
	}
	programs, inits = build(dir, "credential", credential), build(dir, "init", initial)
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// build makes both of a program's.
func build(dir, name string, image []byte) map[string]string {
	made := map[string]string{"embedded": filepath.Join(dir, name+"-embedded"), "sanitized": filepath.Join(dir, name+"-sanitized")}
	if err := os.WriteFile(made["embedded"], image, 0o755); err != nil {
		panic(err)
	}
	out, err := exec.Command("gcc", "-DHOSTED", "-std=gnu11", "-g", "-Wall", "-Wextra", "-Werror",
		"-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-o", made["sanitized"], name+".c").CombinedOutput()
	if err != nil {
		panic(fmt.Sprintf("build the sanitized %s: %v\n%s", name, err, out))
	}
	return made
}

// forEach runs a test with each of the helpers.
func forEach(t *testing.T, test func(t *testing.T, program string)) { each(t, programs, test) }

func each(t *testing.T, programs map[string]string, test func(t *testing.T, program string)) {
	for name, program := range programs {
		t.Run(name, func(t *testing.T) { test(t, program) })
	}
}

// result is how a program ended.
type result struct {
	code           int
	stdout, stderr string
}

func (r result) String() string {
	return fmt.Sprintf("code %d, stdout %.200q, stderr %.1000q", r.code, r.stdout, r.stderr)
}

// start runs a command with two variables, and waits for its end.
func start(t testing.TB, url, token string, command ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = []string{
		"AGENTOPS_CREDENTIAL_URLS=no", "AGENTOPS_CREDENTIAL_URL=" + url, "AGENTOPS_CREDENTIAL_TOKEN_FILE=" + token,
		fmt.Sprintf("ASAN_OPTIONS=exitcode=%d", exitUndefined), fmt.Sprintf("UBSAN_OPTIONS=exitcode=%d", exitUndefined),
	}
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Error(err)
		return result{}
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// tokenFile makes a file of a token.
func tokenFile(t testing.TB, token string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// listen opens a port on loopback.
func listen(t testing.TB) *net.TCPListener {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener.(*net.TCPListener)
}

// serve reads one request and answers it.
func serve(t testing.TB, answer func(*net.TCPConn)) (url string, requests <-chan string) {
	t.Helper()
	listener := listen(t)
	read := make(chan string, 1)
	go func() {
		defer close(read)
		conn, err := listener.AcceptTCP()
		if err != nil {
			return
		}
		defer conn.Close()
		var request []byte
		for buf := make([]byte, 4096); err == nil && !bytes.HasSuffix(request, []byte("\r\n\r\n")); {
			var n int
			n, err = conn.Read(buf)
			request = append(request, buf[:n]...)
		}
		read <- string(request)
		answer(conn)
	}()
	return "http://" + listener.Addr().String(), read
}

// ask runs a program for grant "prod" against such a server.
func ask(t testing.TB, program string, answer func(*net.TCPConn)) result {
	t.Helper()
	url, _ := serve(t, answer)
	return start(t, url, tokenFile(t, "s3cret"), program, "credential", "prod")
}

// say answers with a text.
func say(text string) func(*net.TCPConn) {
	return func(conn *net.TCPConn) { _, _ = io.WriteString(conn, text) } // who asks may have seen enough
}

// answerOf is a good one.
func answerOf(body string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\ncontent-LENGTH: %d \r\nDate: today\r\n\r\n%s", len(body), body)
}

// fill is the length of the longest body that answerOf may have.
var fill = 64<<10 - len(answerOf(strings.Repeat("x", 60<<10))) + 60<<10

func TestCredentialPrintsTheBodyAlone(t *testing.T) {
	const empty = "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"
	forEach(t, func(t *testing.T, program string) {
		for name, c := range map[string]struct {
			answer func(*net.TCPConn)
			want   string
		}{
			"whole": {say(answerOf(`{"Version":1}`)), `{"Version":1}`},
			"byte by byte": {func(conn *net.TCPConn) {
				for _, b := range []byte(answerOf("{\r\n\r\n}")) {
					_, _ = conn.Write([]byte{b})
				}
			}, "{\r\n\r\n}"},
			"nothing":     {say(empty), ""},
			"any bytes":   {say(answerOf("\x00\x1b\xff")), "\x00\x1b\xff"},
			"as can be":   {say(answerOf(strings.Repeat("x", fill))), strings.Repeat("x", fill)},
			"no headers":  {say("HTTP/1.1 200\r\nContent-Length:2\r\n\r\n{}"), "{}"},
			"the last is": {say("HTTP/1.1 200 OK\r\nContent-Length: 9\r\nContent-Length: 2\r\n\r\n{}"), "{}"},
		} {
			t.Run(name, func(t *testing.T) {
				if got, want := ask(t, program, c.answer), (result{0, c.want, ""}); got != want {
					t.Errorf("%s, want %s", got, want)
				}
			})
		}
	})
}

func TestCredentialAsks(t *testing.T) {
	forEach(t, func(t *testing.T, program string) {
		url, requests := serve(t, say(answerOf("{}")))
		if got, want := start(t, url, tokenFile(t, " \ts3cret\r\n"), program, "credential", "prod"), (result{0, "{}", ""}); got != want {
			t.Fatalf("%s, want %s", got, want)
		}
		want := "GET /v1/process/prod HTTP/1.1\r\nHost: " + strings.TrimPrefix(url, "http://") + "\r\nAuthorization: s3cret\r\nConnection: close\r\n\r\n"
		if got := <-requests; got != want {
			t.Errorf("request %q, want %q", got, want)
		}
	})
}

// The longest request that can be.
func TestCredentialAsksAtLength(t *testing.T) {
	grant, token := strings.Repeat("g", 256), strings.Repeat("t", 256)
	forEach(t, func(t *testing.T, program string) {
		url, requests := serve(t, say(answerOf("{}")))
		port := strings.TrimPrefix(url, "http://127.0.0.1:")
		port = strings.Repeat("0", 9-len(port)) + port
		if got, want := start(t, "http://127.0.0.1:"+port, tokenFile(t, token), program, "credential", grant), (result{0, "{}", ""}); got != want {
			t.Fatalf("%s, want %s", got, want)
		}
		want := "GET /v1/process/" + grant + " HTTP/1.1\r\nHost: 127.0.0.1:" + port + "\r\nAuthorization: " + token + "\r\nConnection: close\r\n\r\n"
		if got := <-requests; got != want {
			t.Errorf("request %q, want %q", got, want)
		}
	})
}

func TestCredentialFailsInOneLine(t *testing.T) {
	const server = "the credential server"
	forEach(t, func(t *testing.T, program string) {
		for name, c := range map[string]struct {
			answer func(*net.TCPConn)
			want   string
		}{
			"refused":        {say("HTTP/1.1 503 Service Unavailable\r\nAgentops-Error: not\x1b[2J to\x7fd\x9b\u009bay\r\nContent-Length: 0\r\n\r\n"), "not[2J today"},
			"no grant":       {say("HTTP/1.1 404 Not Found\r\n\r\n"), server + " answered 404 Not Found"},
			"a body":         {say("HTTP/1.1 401 X\r\nContent-Length: 2\r\n\r\n{}"), server + " answered 401 X"},
			"nearly 200":     {say("HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\n{}"), server + " answered 2000 OK"},
			"no status":      {say("HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"), server + " answered "},
			"cut off":        {say("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"), "the answer of " + server + " is cut off"},
			"more than said": {say("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc"), "the answer of " + server + " is cut off"},
			"no length":      {say("HTTP/1.1 200 OK\r\n\r\nabc"), "the answer of " + server + " is cut off"},
			"less than 0":    {say("HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabc"), "the answer of " + server + " has no valid length"},
			"2^64+3":         {say("HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551619\r\n\r\nabc"), "the answer of " + server + " has no valid length"},
			"empty length":   {say("HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nabc"), "the answer of " + server + " has no valid length"},
			"half a head":    {say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"), "the answer of " + server + " is no HTTP"},
			"nothing":        {say(""), "the answer of " + server + " is no HTTP"},
			"no HTTP":        {say("SSH-2.0 200 OK\r\nContent-Length: 0\r\n\r\n"), "the answer of " + server + " is no HTTP"},
			"too long":       {say(answerOf(strings.Repeat("x", fill+1))), "ask " + server + ": the answer is too long"},
			"huge":           {say(answerOf(strings.Repeat("x", 1<<20))), "ask " + server + ": the answer is too long"},
			"broken off": {func(conn *net.TCPConn) {
				_ = conn.SetLinger(0)
			}, "ask " + server + ": read: connection reset by peer"},
		} {
			t.Run(name, func(t *testing.T) {
				if got, want := ask(t, program, c.answer), (result{1, "", "agentops: credentials of grant prod: " + c.want + "\n"}); got != want {
					t.Errorf("%s, want %s", got, want)
				}
			})
		}
	})
}

// A reason of any length is shown in one line, as far as there is room for it.
func TestCredentialCutsALongReason(t *testing.T) {
	forEach(t, func(t *testing.T, program string) {
		got := ask(t, program, say("HTTP/1.1 500 x\r\nAgentops-Error: "+strings.Repeat("why ", 10_000)+"\r\n\r\n"))
		if got.code != 1 || len(got.stderr) != 768 || !strings.HasSuffix(got.stderr, "\n") || strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("code %d, %d bytes: %q", got.code, len(got.stderr), got.stderr)
		}
	})
}

func TestCredentialCannotAsk(t *testing.T) {
	gone := listen(t)
	url := "http://" + gone.Addr().String()
	gone.Close()
	good, folder := tokenFile(t, "s3cret"), t.TempDir()
	refused := "ask the credential server: connect to " + gone.Addr().String() + ": connection refused"
	const prefix, file = "agentops: credentials of grant prod: ", "read AGENTOPS_CREDENTIAL_TOKEN_FILE: "
	forEach(t, func(t *testing.T, program string) {
		for _, c := range []struct{ url, token, grant, want string }{
			{url, good, "prod", prefix + refused},
			{url, "", "prod", prefix + file + "open : no such file or directory"},
			{url, folder + "/none", "prod", prefix + file + "open " + folder + "/none: no such file or directory"},
			{url, good + "/x", "prod", prefix + file + "open " + good + "/x: not a directory"},
			{url, folder, "prod", prefix + file + "read " + folder + ": is a directory"},
			{url, "/dev/zero", "prod", prefix + file + "the token is too long"},
			{url, tokenFile(t, strings.Repeat("x", 257)), "prod", prefix + file + "the token is too long"},
			{url, tokenFile(t, strings.Repeat("x", 256)), "prod", prefix + refused},
		} {
			if got, want := start(t, c.url, c.token, program, "credential", c.grant), (result{1, "", c.want + "\n"}); got != want {
				t.Errorf("%s, want %s", got, want)
			}
		}
	})
}

// The token goes to the run's own loopback only.
func TestCredentialTakesNoOtherServer(t *testing.T) {
	forEach(t, func(t *testing.T, program string) {
		for _, url := range []string{
			"", "http://127.0.0.1", "http://127.0.0.1:", "http://127.0.0.2:80", "http://localhost:80", "https://127.0.0.1:80", "http://127.0.0.1:80/",
			"http://127.0.0.1:80@evil.example", "http://127.0.0.1:0", "http://127.0.0.1:65536", "http://127.0.0.1:-1", "http://127.0.0.1:4294967376", `"\`,
		} {
			want := `agentops: credentials of grant prod: AGENTOPS_CREDENTIAL_URL is ` + fmt.Sprintf("%q", url) +
				", not http://127.0.0.1:PORT: is this a run with a grant?\n"
			if got := start(t, url, "/none", program, "credential", "prod"); got != (result{1, "", want}) {
				t.Errorf("%q: %s, want %q", url, got, want)
			}
		}
		got := start(t, "a\x1bb\nü", "/none", program, "credential", "prod")
		if !strings.Contains(got.stderr, `is "a\x1bb\x0a\xc3\xbc", not`) {
			t.Error(got)
		}
	})
}

func TestCredentialWithoutVariables(t *testing.T) {
	forEach(t, func(t *testing.T, program string) {
		cmd := exec.Command(program, "credential", "prod")
		cmd.Env = []string{}
		out, err := cmd.CombinedOutput()
		want := "agentops: credentials of grant prod: AGENTOPS_CREDENTIAL_URL is \"\", not http://127.0.0.1:PORT: is this a run with a grant?\n"
		if cmd.ProcessState.ExitCode() != 1 || string(out) != want {
			t.Errorf("%v: %q", err, out)
		}
	})
}

func TestCredentialRefusesArguments(t *testing.T) {
	forEach(t, func(t *testing.T, program string) {
		for _, args := range [][]string{
			nil, {"credential"}, {"credential", "a", "b"}, {"init", "a"}, {"", "a"},
			{"credential", "../x"}, {"credential", "a b"}, {"credential", "a\r"}, {"credential", "a\nb"},
			{"credential", strings.Repeat("x", 257)},
		} {
			if got, want := start(t, "", "", append([]string{program}, args...)...), (result{1, "", "usage: helper credential GRANT\n"}); got != want {
				t.Errorf("%q: %s, want %s", args, got, want)
			}
		}
	})
}

func TestCredentialOfAServerOfHTTP(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "s3cret" {
			t.Errorf("headers %v", r.Header)
		}
		if r.URL.Path != "/v1/process/prod" {
			w.Header().Set("agentops-error", "not today")
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = io.WriteString(w, `{"Version":1}`)
	}))
	defer server.Close()
	token := tokenFile(t, "s3cret\n")
	forEach(t, func(t *testing.T, program string) {
		for grant, want := range map[string]result{
			"prod":  {0, `{"Version":1}`, ""},
			"other": {1, "", "agentops: credentials of grant other: not today\n"},
		} {
			if got := start(t, server.URL, token, program, "credential", grant); got != want {
				t.Errorf("%s, want %s", got, want)
			}
		}
	})
}

// What could not be printed was not given.
func TestCredentialSaysThatStdoutIsFull(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	forEach(t, func(t *testing.T, program string) {
		url, _ := serve(t, say(answerOf("{}")))
		var stderr bytes.Buffer
		cmd := exec.Command(program, "credential", "prod")
		cmd.Env = []string{"AGENTOPS_CREDENTIAL_URL=" + url, "AGENTOPS_CREDENTIAL_TOKEN_FILE=" + tokenFile(t, "t")}
		cmd.Stdout, cmd.Stderr = full, &stderr
		err := cmd.Run()
		if want := "agentops: credentials of grant prod: write /dev/stdout: no space left on device\n"; cmd.ProcessState.ExitCode() != 1 || stderr.String() != want {
			t.Errorf("%v: %q, want %q", err, &stderr, want)
		}
	})
}

// A pipe may be shorter than the answer, and its writer be told not to wait.
func TestCredentialWaitsForWhoReads(t *testing.T) {
	forEach(t, func(t *testing.T, program string) {
		url, _ := serve(t, say(answerOf(strings.Repeat("x", fill))))
		var pipe [2]int
		if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(uintptr(pipe[1]), unix.F_SETPIPE_SZ, 4096); err != nil {
			t.Fatal(err)
		}
		pid, err := syscall.ForkExec(program, []string{program, "credential", "prod"}, &syscall.ProcAttr{
			Env:   []string{"AGENTOPS_CREDENTIAL_URL=" + url, "AGENTOPS_CREDENTIAL_TOKEN_FILE=" + tokenFile(t, "t")},
			Files: []uintptr{0, uintptr(pipe[1]), 2},
		})
		unix.Close(pipe[1])
		if err != nil {
			t.Fatal(err)
		}
		reader := os.NewFile(uintptr(pipe[0]), "pipe")
		defer reader.Close()
		got, err := io.ReadAll(reader)
		var status syscall.WaitStatus
		if _, waitErr := syscall.Wait4(pid, &status, 0, nil); err != nil || waitErr != nil || !status.Exited() || status.ExitStatus() != 0 || len(got) != fill {
			t.Errorf("%d bytes of %d, status %#x, %v, %v", len(got), fill, status, err, waitErr)
		}
	})
}

// SDKs wait for a credential_process without end, so the helper does not, whatever
// signals it is started without, and whether it is not answered, is answered in drops,
// or finds no end of its token.
func TestCredentialGivesUp(t *testing.T) {
	silent, token := listen(t), tokenFile(t, "token")
	dripping := listen(t)
	go func() {
		for {
			conn, err := dripping.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				tick := time.NewTicker(100 * time.Millisecond)
				defer tick.Stop()
				for range tick.C {
					if _, err := io.WriteString(conn, "H"); err != nil {
						return
					}
				}
			}()
		}
	}()
	pipe, holder, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer holder.Close()
	endless := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), pipe.Fd())
	var all sync.WaitGroup
	defer all.Wait()
	forEach(t, func(_ *testing.T, program string) {
		for _, c := range []struct{ url, token string }{
			{"http://" + silent.Addr().String(), token},
			{"http://" + dripping.Addr().String(), token},
			{"http://" + silent.Addr().String(), endless},
		} {
			all.Go(func() {
				began := time.Now()
				got := start(t, c.url, c.token, "env", "--ignore-signal=ALRM", "--block-signal=ALRM", program, "credential", "prod")
				if want := (result{1, "", "agentops: the credential server has not answered in 4s\n"}); got != want {
					t.Errorf("%s, want %s", got, want)
				}
				if took := time.Since(began); took < 4*time.Second {
					t.Errorf("after %s", took)
				}
			})
		}
	})
}

func TestCredentialIsStaticAndSmall(t *testing.T) { isStaticAndSmall(t, "credential", credential) }

// isStaticAndSmall looks at both images of a program: they run in any tree, with or
// without a libc, and nothing of them is both written and executed.
func isStaticAndSmall(t *testing.T, name string, embedded []byte) {
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		image, err := os.ReadFile(name + "_" + arch + ".elf")
		if err != nil {
			t.Fatal(err)
		}
		if arch == runtime.GOARCH && !bytes.Equal(image, embedded) {
			t.Errorf("%s is not what goes into a run", arch)
		}
		file, err := elf.NewFile(bytes.NewReader(image))
		if err != nil {
			t.Fatal(err)
		}
		if len(image) > 16<<10 || file.Machine != machine || file.Type != elf.ET_EXEC {
			t.Errorf("%s: %d bytes, %s, %s", arch, len(image), file.Machine, file.Type)
		}
		stack := false
		for _, segment := range file.Progs {
			stack = stack || segment.Type == elf.PT_GNU_STACK
			if segment.Type == elf.PT_INTERP || segment.Type == elf.PT_DYNAMIC || segment.Flags&(elf.PF_W|elf.PF_X) == elf.PF_W|elf.PF_X {
				t.Errorf("%s: it has a segment %s, %s", arch, segment.Type, segment.Flags)
			}
		}
		if !stack {
			t.Errorf("%s: its stack can be executed", arch)
		}
	}
}

// Whatever the answer, the helper prints a body that it has, or one line of reason.
func FuzzCredentialAnswer(f *testing.F) {
	for _, seed := range []string{
		answerOf("{}"), "HTTP/1.1 503 x\r\nAgentops-Error: y\r\n\r\n", "", "\r\n\r\n", "HTTP/1.\r\n\r\n", "HTTP/1. 200\r\n:\r\n\r\n",
		" \r\n\r\n", "HTTP/1.1 200\r\nContent-Length\r\n\r\n", "HTTP/1.1 200 \r\nContent-Length: 1\r\n\r\n\r\n\r", "HTTP/1.1 500 \x1b\r\nagentops-error: \r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		got := ask(t, programs["sanitized"], say(string(answer)))
		switch {
		case got.code == 0 && got.stderr == "" && bytes.HasSuffix(answer, []byte(got.stdout)):
		case got.code == 1 && got.stdout == "" && strings.HasPrefix(got.stderr, "agentops: ") &&
			strings.HasSuffix(got.stderr, "\n") && !strings.ContainsAny(got.stderr[:len(got.stderr)-1], "\r\n\x1b"):
		default:
			t.Errorf("%q gave %s", answer, got)
		}
	})
}
