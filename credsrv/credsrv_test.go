package credsrv

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"agentops/audit"
	"agentops/credsrv/grant"
	"agentops/test/awsstub"

	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/sirupsen/logrus"
)

const role = "arn:aws:iam::123456789012:role/Role"

// recorder keeps events in memory; full makes it fail.
type recorder struct {
	mu     sync.Mutex
	events []audit.Event
	full   bool
}

func (r *recorder) Append(e audit.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.full {
		return errors.New("disk full")
	}
	r.events = append(r.events, e)
	return nil
}

func (r *recorder) last() audit.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.events) == 0 {
		return nil
	}
	return r.events[len(r.events)-1]
}

// newStub starts the stand-in and makes its user the host's one identity.
func newStub(t *testing.T, arn string, change ...func(*awsstub.Config)) *awsstub.Stub {
	t.Helper()
	config := awsstub.Config{
		Users: []awsstub.User{{AccessKeyID: "AKIAHOST", SecretAccessKey: "host-secret", ARN: arn}},
		Roles: []awsstub.Role{{ARN: role}},
	}
	for _, f := range change {
		f(&config)
	}
	stub, err := awsstub.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stub.Close() })
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "")
		}
	}
	none := t.TempDir() + "/none"
	for name, value := range map[string]string{
		"AWS_ENDPOINT_URL_STS": stub.URL(), "AWS_ACCESS_KEY_ID": "AKIAHOST", "AWS_SECRET_ACCESS_KEY": "host-secret",
		"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": none, "AWS_SHARED_CREDENTIALS_FILE": none,
	} {
		t.Setenv(name, value)
	}
	return stub
}

const hostUser = "arn:aws:iam::123456789012:user/host"

func newGrant(t *testing.T) grant.AWS {
	t.Helper()
	g, err := grant.New(grant.AWS{RoleARN: role})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func newSource(t *testing.T) (*Source, *recorder) {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	rec := &recorder{}
	s, err := NewSource(t.Context(), SourceConfig{Grant: newGrant(t), Run: "run-1", Recorder: rec, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	return s, rec
}

// change makes the credentials at hand others.
func (s *Source) change(f func(*Credentials)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := *s.current
	f(&changed)
	s.current = &changed
}

// hundred asks a hundred times at once and returns the distinct key ids.
func hundred(t *testing.T, s *Source) map[string]int {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	ids := make(map[string]int)
	for range 100 {
		wg.Go(func() {
			c, err := s.Credentials(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			ids[c.AccessKeyID]++
			mu.Unlock()
		})
	}
	wg.Wait()
	return ids
}

func TestNobodyWaitsForARefreshWhileTheOldAreValid(t *testing.T) {
	stub := newStub(t, hostUser)
	s, _ := newSource(t)
	old := s.held().AccessKeyID
	release := make(chan struct{})
	stub.Fail(awsstub.Failure{Block: release})
	s.change(func(c *Credentials) { c.Obtained = c.Obtained.Add(-time.Hour) }) // renew now
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { s.Refresh(ctx) })
	if err := stub.AwaitAssumeRole(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if ids := hundred(t, s); len(ids) != 1 || ids[old] != 100 {
		t.Errorf("answered with %v, want the old ones", ids)
	}
	close(release)
	cancel()
	wg.Wait()
	if calls := stub.AssumeRoleCalls(); calls != 2 {
		t.Errorf("%d calls of AssumeRole, want 2", calls)
	}
}

func TestAHundredClientsShareOneRefresh(t *testing.T) {
	stub := newStub(t, hostUser)
	s, _ := newSource(t)
	release := make(chan struct{})
	stub.Fail(awsstub.Failure{Block: release})
	s.change(func(c *Credentials) { c.Expiration = time.Now() })
	go func() {
		if err := stub.AwaitAssumeRole(t.Context(), 2); err != nil {
			t.Error(err)
		}
		close(release)
	}()
	if ids := hundred(t, s); len(ids) != 1 {
		t.Errorf("answered with %v, want one session", ids)
	}
	if calls, most := stub.AssumeRoleCalls(), stub.MostAtOnce(); calls != 2 || most != 1 {
		t.Errorf("%d calls of AssumeRole, %d at once", calls, most)
	}
}

// A client that looked before a refresh and asks after it needs no other.
func TestALateClientTakesWhatIsThere(t *testing.T) {
	stub := newStub(t, hostUser)
	s, _ := newSource(t)
	seen := s.held()
	for range 2 {
		if err := s.refresh(t.Context(), seen); err != nil {
			t.Fatal(err)
		}
	}
	if calls := stub.AssumeRoleCalls(); calls != 2 {
		t.Errorf("%d calls of AssumeRole, want 2", calls)
	}
}

func TestOldCredentialsAreServedWhileSTSFails(t *testing.T) {
	stub := newStub(t, hostUser)
	s, rec := newSource(t)
	old := s.held().AccessKeyID
	for range assumeAttempts {
		stub.Fail(awsstub.Failure{Code: "Throttling", Message: "slow down"})
	}
	if err := s.refresh(t.Context(), s.held()); err == nil {
		t.Fatal("a throttled refresh succeeded")
	}
	if event, ok := rec.last().(audit.CredentialRefresh); !ok || !strings.Contains(event.Error, "Throttling") {
		t.Errorf("recorded %+v", rec.last())
	}
	if c, err := s.Credentials(t.Context()); err != nil || c.AccessKeyID != old {
		t.Errorf("served %v, %v", c, err)
	}
	// Expired, and still no answer: an error, not what has expired.
	s.change(func(c *Credentials) { c.Expiration = time.Now() })
	stub.Fail(awsstub.Failure{Code: "AccessDenied"})
	if c, err := s.Credentials(t.Context()); err == nil {
		t.Errorf("served %v", c)
	}
}

func TestRenewAt(t *testing.T) {
	obtained := time.Now()
	for life, want := range map[time.Duration]time.Duration{
		20 * time.Second: 10 * time.Second,
		15 * time.Minute: 7*time.Minute + 30*time.Second,
		time.Hour:        40 * time.Minute,
		12 * time.Hour:   11*time.Hour + 40*time.Minute,
	} {
		c := &Credentials{Obtained: obtained, Expiration: obtained.Add(life)}
		if got := c.renewAt(0).Sub(obtained); got != want {
			t.Errorf("of %s: renewed after %s, want %s", life, got, want)
		}
		if early := c.renewAt(0).Sub(c.renewAt(1)); early != life/10 {
			t.Errorf("of %s: chance moves it by %s", life, early)
		}
	}
}

// serve starts a server for a source and returns its address.
func serve(t *testing.T, s *Source, rec Recorder) (*Server, string) {
	t.Helper()
	server := NewServer(ServerConfig{Sources: []*Source{s}, Recorder: rec, Log: s.config.Log})
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return server, listener.Addr().String()
}

func get(t *testing.T, url, token, host string) (*http.Response, map[string]any) {
	t.Helper()
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", token)
	if host != "" {
		request.Host = host
	}
	res, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var document map[string]any
	if err := json.NewDecoder(res.Body).Decode(&document); err != nil {
		t.Fatal(err)
	}
	return res, document
}

func TestBothProtocols(t *testing.T) {
	newStub(t, hostUser)
	s, rec := newSource(t)
	server, address := serve(t, s, rec)
	c := s.held()
	for protocol, want := range map[string]map[string]any{
		"process":   {"Version": 1.0, "SessionToken": string(c.SessionToken)},
		"container": {"RoleArn": role, "Token": string(c.SessionToken)},
	} {
		res, document := get(t, "http://"+address+"/v1/"+protocol+"/aws", string(server.Token()), "")
		want["AccessKeyId"], want["SecretAccessKey"] = c.AccessKeyID, string(c.SecretAccessKey)
		want["Expiration"] = c.Expiration.Add(-time.Minute).UTC().Truncate(time.Second).Format("2006-01-02T15:04:05Z")
		if fmt.Sprint(document) != fmt.Sprint(want) || res.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %s with %s", protocol, document, res.Header)
		}
		event, ok := rec.last().(audit.CredentialServe)
		if !ok || event.Protocol != protocol || event.Status != 200 || event.AccessKeyID != c.AccessKeyID {
			t.Errorf("recorded %+v", rec.last())
		}
	}
	// The SDK's own client of the container endpoint.
	provider := endpointcreds.New("http://"+address+"/v1/container/aws", func(o *endpointcreds.Options) { o.AuthorizationToken = string(server.Token()) })
	if got, err := provider.Retrieve(t.Context()); err != nil || got.SecretAccessKey != string(c.SecretAccessKey) || !got.CanExpire {
		t.Errorf("the SDK got %+v, %v", got, err)
	}
}

func TestWhoIsNotServed(t *testing.T) {
	newStub(t, hostUser)
	s, rec := newSource(t)
	server, address := serve(t, s, rec)
	token := string(server.Token())
	for name, c := range map[string]struct {
		path, token, host string
		status            int
	}{
		"no token":       {"/v1/process/aws", "", "", 401},
		"another token":  {"/v1/process/aws", strings.Repeat("0", len(token)), "", 401},
		"bearer":         {"/v1/process/aws", "Bearer " + token, "", 401},
		"another host":   {"/v1/process/aws", token, "evil.example", 403},
		"localhost":      {"/v1/process/aws", token, strings.Replace(address, "127.0.0.1", "localhost", 1), 403},
		"another grant":  {"/v1/process/other", token, "", 404},
		"another path":   {"/", token, "", 404},
		"out of the way": {"/v1/process/../../x", token, "", 404},
	} {
		t.Run(name, func(t *testing.T) {
			res, document := get(t, "http://"+address+c.path, c.token, c.host)
			if res.StatusCode != c.status || document["code"] == "" || document["Code"] != document["code"] || document["Message"] != document["message"] || res.Header.Get(ErrorHeader) == "" {
				t.Errorf("%d %v", res.StatusCode, document)
			}
			if event, ok := rec.last().(audit.CredentialServe); !ok || event.Status != c.status || event.Error == "" {
				t.Errorf("recorded %+v", rec.last())
			}
		})
	}
}

func TestWhatCannotBeRecordedIsNotServed(t *testing.T) {
	newStub(t, hostUser)
	s, rec := newSource(t)
	server, address := serve(t, s, rec)
	rec.mu.Lock()
	rec.full = true
	rec.mu.Unlock()
	request, err := http.NewRequest(http.MethodGet, "http://"+address+"/v1/process/aws", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", string(server.Token()))
	if res, err := http.DefaultClient.Do(request); err == nil {
		res.Body.Close()
		t.Errorf("answered %d", res.StatusCode)
	}
}

// Keys of the host's that have expired are told as such, and new ones are used at
// once, with nothing to restart.
func TestTheHostsCredentialsExpire(t *testing.T) {
	var late atomic.Int64
	newStub(t, hostUser, func(c *awsstub.Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(late.Load())) }
	})
	s, rec := newSource(t)
	host := s.held() // sessions like this one are many a host's identity
	t.Setenv("AWS_ACCESS_KEY_ID", host.AccessKeyID)
	t.Setenv("AWS_SECRET_ACCESS_KEY", string(host.SecretAccessKey))
	t.Setenv("AWS_SESSION_TOKEN", string(host.SessionToken))
	if err := s.refresh(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	late.Store(int64(time.Hour))
	err := s.refresh(t.Context(), s.held())
	_, proveErr := Prove(t.Context(), newGrant(t))
	for _, err := range []error{err, proveErr} {
		if assume, ok := errors.AsType[*AssumeError](err); !ok || assume.Code != "ExpiredToken" || !strings.Contains(assume.Hint(), "host's own AWS credentials have expired") {
			t.Errorf("with expired keys: %v", err)
		}
	}
	if event, ok := rec.last().(audit.CredentialRefresh); !ok || !strings.Contains(event.Error, "ExpiredToken") {
		t.Errorf("recorded %+v", rec.last())
	}
	late.Store(0) // or it would be our clock that is late
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIAHOST")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "host-secret")
	t.Setenv("AWS_SESSION_TOKEN", "")
	if err := s.refresh(t.Context(), s.held()); err != nil {
		t.Errorf("with new keys: %v", err)
	}
}

// A program learns that there are no credentials; why, is for the host's log alone.
func TestWhyThereAreNoneIsToldToTheHost(t *testing.T) {
	stub := newStub(t, hostUser)
	var said bytes.Buffer
	s, rec := newSource(t)
	log := logrus.New()
	log.SetOutput(&said)
	s.config.Log = log
	s.change(func(c *Credentials) { c.Expiration = time.Now() })
	// The server's own renewal and the program's question, each with the SDK's tries.
	stub.Fail(slices.Repeat([]awsstub.Failure{{Code: "AccessDenied", Message: "not for " + hostUser}}, 20)...)
	server, address := serve(t, s, rec)
	res, document := get(t, "http://"+address+"/v1/process/aws", string(server.Token()), "")
	if told := fmt.Sprint(document, res.Header); res.StatusCode != 503 || strings.Contains(told, hostUser) || strings.Contains(told, "AccessDenied") {
		t.Errorf("the program is told %d %s", res.StatusCode, told)
	}
	if !strings.Contains(said.String(), "not for "+hostUser) || !strings.Contains(said.String(), "hint=") {
		t.Errorf("the host is told %s", &said)
	}
}

func TestProve(t *testing.T) {
	newStub(t, "arn:aws:sts::123456789012:assumed-role/Host/i-1")
	proof, err := Prove(t.Context(), newGrant(t))
	if err != nil || !proof.Chained || !strings.HasSuffix(proof.AssumedRole, ":assumed-role/Role/agentops-grant") || time.Until(proof.Expiration) > 15*time.Minute {
		t.Errorf("%+v, %v", proof, err)
	}
	long := newGrant(t)
	long.SessionDuration = 2 * time.Hour
	_, err = Prove(t.Context(), long)
	if assume, ok := errors.AsType[*AssumeError](err); !ok || !strings.Contains(assume.Hint(), "role chaining") {
		t.Errorf("two hours by a role: %v", err)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	_, err = Prove(t.Context(), newGrant(t))
	if assume, ok := errors.AsType[*AssumeError](err); !ok || !strings.Contains(assume.Hint(), "no AWS credentials: tried were") {
		t.Errorf("without credentials: %v", err)
	}
}

func TestSecretsDoNotShow(t *testing.T) {
	c := &Credentials{AccessKeyID: "ASIA", SecretAccessKey: "hush", SessionToken: "hush"}
	encoded, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	shown := string(encoded) + fmt.Sprintf("%v %+v %#v %s %q %x %d %v", c, c, *c, c.SecretAccessKey, c.SecretAccessKey, c.SecretAccessKey, c.SecretAccessKey, []Secret{c.SessionToken})
	if strings.Contains(shown, "hush") || strings.Contains(shown, fmt.Sprintf("%x", "hush")) {
		t.Errorf("shown: %s", shown)
	}
}

func TestEnvironment(t *testing.T) {
	first, second := newGrant(t), newGrant(t)
	second.Name, second.Region = "second", "eu-west-1"
	config := EnvironmentConfig{
		Grants: []grant.AWS{first, second}, Server: "127.0.0.1:4711", Token: "hush", Folder: "/agentops", Helper: "/agentops/helper", Shell: true,
	}
	env, files := Environment(config)
	for _, want := range []string{"AWS_REGION=us-east-1", "AWS_DEFAULT_REGION=us-east-1", "AWS_CONFIG_FILE=/agentops/aws/config", "AWS_EC2_METADATA_DISABLED=true", "AGENTOPS_CREDENTIAL_URL=http://127.0.0.1:4711"} {
		if !strings.Contains(strings.Join(env, "\n")+"\n", want+"\n") {
			t.Errorf("%s is not in %q", want, env)
		}
	}
	if strings.Contains(strings.Join(env, " "), "hush") || string(files["token"]) != "hush" {
		t.Errorf("the token is not in its file alone: %q", env)
	}
	want := "[default]\nregion = us-east-1\ncredential_process = /agentops/helper credential aws\n\n" +
		"[profile aws]\nregion = us-east-1\ncredential_process = /agentops/helper credential aws\n\n" +
		"[profile second]\nregion = eu-west-1\ncredential_process = /agentops/helper credential second\n\n"
	if got := string(files["aws/config"]); got != want {
		t.Errorf("the configuration is\n%s", got)
	}
	config.Shell = false
	env, files = Environment(config)
	if !strings.Contains(strings.Join(env, "\n"), "AWS_CONTAINER_CREDENTIALS_FULL_URI=http://127.0.0.1:4711/v1/container/aws") || strings.Contains(string(files["aws/config"]), "credential_process") {
		t.Errorf("without a shell: %q, %s", env, files["aws/config"])
	}
}
