package test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// mostResident is what an agent may take of the memory, in bytes.
const mostResident = 80_000_000

// loaded is a run of which the memory is seen from the upstream, which its agent
// serves meanwhile.
type loaded struct {
	*outside
	pid atomic.Int64 // of the agent
}

// run starts a command in a run that reaches the upstream by every name, and returns
// what it printed.
func (l *loaded) run(t *testing.T, command ...string) string {
	t.Helper()
	state := t.TempDir()
	args := []string{"run", "--quiet", "--upstream-ca", l.ca, "--resolve", "*=" + l.tls, "--"}
	cmd := exec.CommandContext(t.Context(), agentPath(t), append(args, command...)...)
	cmd.Dir, cmd.Env = t.TempDir(), baseEnv(state)
	if filepath.IsAbs(command[0]) { // a program of ours, which only a workspace brings into a run
		cmd.Dir = filepath.Dir(command[0])
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	l.pid.Store(int64(cmd.Process.Pid))
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, out.Bytes())
	}
	return out.String()
}

// resident is what the agent has of the memory, in bytes: VmRSS is now, VmHWM the
// most that it was.
func (l *loaded) resident(t *testing.T, what string) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.pid.Load()))
	if err != nil {
		t.Error(err)
		return 0
	}
	kib := regexp.MustCompile(what + `:\s+(\d+) kB`).FindSubmatch(status)
	if kib == nil {
		t.Errorf("no %s in %q", what, status)
		return 0
	}
	n, err := strconv.Atoi(string(kib[1]))
	if err != nil {
		t.Error(err)
	}
	return n << 10
}

// A body that is larger than what the agent may have of the memory goes through it,
// down and up at once. LOAD_BYTES says how large.
func TestLargeBodies(t *testing.T) {
	needRoot(t)
	size := int64(128 << 20)
	if text := os.Getenv("LOAD_BYTES"); text != "" {
		var err error
		if size, err = strconv.ParseInt(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	for protocol, flag := range map[string]string{"HTTP/1.1": "--http1.1", "HTTP/2.0": "--http2"} {
		t.Run(path.Base(protocol), func(t *testing.T) {
			l := &loaded{}
			sent, received := sha256.New(), sha256.New()
			most, began := 0, time.Now()
			mux := http.NewServeMux()
			mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
				body := io.LimitReader(rand.NewChaCha8([32]byte{}), size)
				if _, err := io.CopyBuffer(io.MultiWriter(sent, w), body, make([]byte, 256<<10)); err != nil {
					t.Error(err)
				}
			})
			mux.HandleFunc("PUT /", func(w http.ResponseWriter, r *http.Request) {
				n, err := io.CopyBuffer(struct{ io.Writer }{received}, r.Body, make([]byte, 256<<10))
				if err != nil || n != size || r.Proto != protocol {
					t.Errorf("%d bytes over %s, %v", n, r.Proto, err)
				}
				most = l.resident(t, "VmHWM")
			})
			l.outside = serveOutside(t, mux)
			curl := "curl -sS --fail " + flag
			if out := l.run(t, "sh", "-c", curl+" https://down.example/ | "+curl+" -T - https://up.example/"); out != "" {
				t.Errorf("the clients say %q", out)
			}
			t.Logf("%d bytes down and up in %.1f s, sum %x; the agent had %.1f MB at most", size, time.Since(began).Seconds(), received.Sum(nil), float64(most)/1e6)
			if !bytes.Equal(sent.Sum(nil), received.Sum(nil)) {
				t.Errorf("%x was sent, %x came", sent.Sum(nil), received.Sum(nil))
			}
			if most == 0 || most > mostResident {
				t.Errorf("the agent had %d bytes of the memory", most)
			}
		})
	}
}

// A thousand connections that wait, and 200 that do not.
func TestManyConnections(t *testing.T) {
	needRoot(t)
	crowd := filepath.Join(t.TempDir(), "crowd")
	build := exec.Command("go", "build", "-o", crowd, "./testdata/crowd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the client: %v\n%s", err, out)
	}
	for _, protocol := range []string{"http/1.1", "h2"} {
		t.Run(path.Base(protocol), func(t *testing.T) {
			l := &loaded{}
			body := strings.Repeat("x", 4<<10)
			now, most := 0, 0
			mux := http.NewServeMux()
			mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) })
			mux.HandleFunc("/measure", func(http.ResponseWriter, *http.Request) {
				now, most = l.resident(t, "VmRSS"), l.resident(t, "VmHWM")
			})
			l.outside = serveOutside(t, mux)
			if out := l.run(t, crowd, "crowd.example", protocol, "1000", "200"); out != "" {
				t.Errorf("the client says %q", out)
			}
			t.Logf("the agent has %.1f MB, had %.1f MB at most", float64(now)/1e6, float64(most)/1e6)
			if now == 0 || now > mostResident {
				t.Errorf("the agent has %d bytes of the memory", now)
			}
		})
	}
}

// What a start has used of the memory is given back once there is nothing to do.
func TestQuietRun(t *testing.T) {
	needRoot(t)
	const most = 15_000_000
	l := &loaded{}
	l.outside = serveOutside(t, http.NotFoundHandler())
	run := exec.CommandContext(t.Context(), agentPath(t), "run", "--quiet", "--resolve", "*="+l.tls, "--", "cat")
	run.Dir, run.Env = t.TempDir(), baseEnv(t.TempDir())
	stdin, err := run.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	l.pid.Store(int64(run.Process.Pid))
	now := 0
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		// A start that has hardly begun is small as well.
		if now = l.resident(t, "VmRSS"); now < most && l.resident(t, "VmHWM") > most {
			break
		}
	}
	t.Logf("the agent has %.1f MB", float64(now)/1e6)
	if now == 0 || now > most {
		t.Errorf("the agent has %d bytes of the memory", now)
	}
	stdin.Close()
	if err := run.Wait(); err != nil {
		t.Error(err)
	}
}
