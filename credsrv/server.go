package credsrv

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"agentops/audit"

	"github.com/sirupsen/logrus"
	"golang.org/x/net/netutil"
)

const (
	readTimeout    = 5 * time.Second
	idleTimeout    = 30 * time.Second
	maxHeaderBytes = 16 << 10
	maxConns       = 256
)

// ErrorHeader carries a failure's reason in one line, for the helper.
const ErrorHeader = "Agentops-Error"

// ServerConfig configures a Server.
type ServerConfig struct {
	Sources  []*Source
	Recorder Recorder
	Log      logrus.FieldLogger

	// Owner names the process that has made a connection, which has just been
	// accepted; nil: not known. It need not be set.
	Owner func(source, destination netip.AddrPort) *audit.Process
}

// Server answers the programs of one run.
type Server struct {
	config  ServerConfig
	sources map[string]*Source
	token   Secret
}

// NewServer makes a server with a token of its own.
func NewServer(config ServerConfig) *Server {
	random := make([]byte, 32)
	rand.Read(random) // never fails
	s := &Server{config: config, sources: make(map[string]*Source), token: Secret(hex.EncodeToString(random))}
	for _, source := range config.Sources {
		s.sources[source.Name()] = source
	}
	return s
}

// Token is what a client must send as Authorization.
func (s *Server) Token() Secret { return s.token }

// Serve answers on a listener on the run's loopback, and renews what it serves,
// until ctx ends.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/process/{grant}", func(w http.ResponseWriter, r *http.Request) { s.answer(w, r, "process") })
	mux.HandleFunc("GET /v1/container/{grant}", func(w http.ResponseWriter, r *http.Request) { s.answer(w, r, "container") })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, "", http.StatusNotFound, "NotFound", "there is nothing at this path, or not by this method")
	})
	server := &http.Server{
		Handler:        s.guard(listener.Addr().String(), mux),
		ReadTimeout:    readTimeout,
		WriteTimeout:   clientWait + readTimeout,
		IdleTimeout:    idleTimeout,
		MaxHeaderBytes: maxHeaderBytes,
		ErrorLog:       log.New(io.Discard, "", 0), // clients that break off
		BaseContext:    func(net.Listener) context.Context { return ctx },
		ConnContext:    s.identify,
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, source := range s.sources {
		wg.Go(func() { source.Refresh(ctx) })
	}
	wg.Go(func() {
		<-ctx.Done()
		_ = server.Close() // what was to be sent has no reader any more
	})
	err := server.Serve(netutil.LimitListener(listener, maxConns))
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve credentials: %w", err)
}

// processKey finds the process behind a request in its context.
type processKey struct{}

// identify finds out who has connected.
func (s *Server) identify(ctx context.Context, conn net.Conn) context.Context {
	if s.config.Owner == nil {
		return ctx
	}
	source, destination := conn.RemoteAddr().(*net.TCPAddr), conn.LocalAddr().(*net.TCPAddr)
	return context.WithValue(ctx, processKey{}, s.config.Owner(source.AddrPort(), destination.AddrPort()))
}

func processOf(r *http.Request) *audit.Process {
	process, _ := r.Context().Value(processKey{}).(*audit.Process)
	return process
}

// guard lets only this run's programs in: who knows the token, and asks for the
// server by its own address (a page in a browser, by rebinding, would not).
func (s *Server) guard(host string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != host {
			s.fail(w, r, "", http.StatusForbidden, "HostNotAllowed", "the Host header is not that of this server")
			return
		}
		given := r.Header.Get("Authorization")
		if subtle.ConstantTimeCompare([]byte(given), []byte(s.token)) != 1 {
			s.fail(w, r, "", http.StatusUnauthorized, "AccessDenied", "the authorization token is absent or wrong")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// answer serves one grant's credentials in the form of one protocol.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, protocol string) {
	name := r.PathValue("grant")
	source, ok := s.sources[name]
	if !ok {
		s.fail(w, r, protocol, http.StatusNotFound, "GrantNotFound", "this run has no such grant")
		return
	}
	credentials, err := source.Credentials(r.Context())
	if err != nil {
		source.log(err).Error("serve AWS credentials to the run")
		s.fail(w, r, protocol, http.StatusServiceUnavailable, "CredentialsUnavailable", "the host could not renew the credentials; it has logged why")
		return
	}
	expiration := credentials.reported(time.Now()).Format(time.RFC3339)
	document := map[string]any{
		"AccessKeyId":     credentials.AccessKeyID,
		"SecretAccessKey": string(credentials.SecretAccessKey),
		"Expiration":      expiration,
	}
	if protocol == "process" {
		document["Version"] = 1
		document["SessionToken"] = string(credentials.SessionToken)
	} else {
		document["Token"] = string(credentials.SessionToken)
		document["RoleArn"] = source.config.Grant.RoleARN
	}
	err = s.config.Recorder.Append(audit.CredentialServe{
		Grant:       name,
		Protocol:    protocol,
		Status:      http.StatusOK,
		AccessKeyID: credentials.AccessKeyID,
		Expiration:  expiration,
		Process:     processOf(r),
	})
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	write(w, http.StatusOK, document)
}

// fail answers with an error in every form that SDKs look for, and records it.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, protocol string, status int, code, message string) {
	err := s.config.Recorder.Append(audit.CredentialServe{
		Grant:    r.PathValue("grant"),
		Protocol: protocol,
		Status:   status,
		Error:    message,
		Process:  processOf(r),
	})
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set(ErrorHeader, message)
	write(w, status, map[string]any{"code": code, "message": message, "Code": code, "Message": message})
}

func write(w http.ResponseWriter, status int, document map[string]any) {
	body, err := json.Marshal(document)
	if err != nil {
		panic(errors.Join(http.ErrAbortHandler, err))
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(body) // who asked may be gone
}
