package mitm

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"agentops/audit"
	"agentops/mitm/policy"

	"github.com/sirupsen/logrus"
)

type flowKey struct{}

// flowOf is the flow that a request came on.
func flowOf(ctx context.Context) *flow { return ctx.Value(flowKey{}).(*flow) }

func newHTTPServer(p *Proxy) *http.Server {
	s := &http.Server{
		Handler:           p.handler(),
		ReadHeaderTimeout: p.config.Limits.HeaderTimeout,
		IdleTimeout:       p.config.Limits.IdleTimeout,
		MaxHeaderBytes:    2 * p.config.Limits.HeaderBytes, // the limit is strictConn's and identify's, who record it
		// OPTIONS * is for the upstream to answer.
		DisableGeneralOptionsHandler: true,
		Protocols:                    new(http.Protocols),
		ErrorLog:                     log.New(debugWriter{p.config.Log}, "", 0),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			var f *flow
			switch conn := conn.(type) {
			case *strictConn:
				f = conn.flow
			case *tls.Conn:
				f = conn.NetConn().(*bufferedConn).flow
			}
			return context.WithValue(ctx, flowKey{}, f)
		},
	}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetHTTP2(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	return s
}

// debugWriter passes what net/http has to say of broken clients to the log.
type debugWriter struct{ log logrus.FieldLogger }

func (w debugWriter) Write(p []byte) (int, error) {
	w.log.Debug(strings.TrimSpace(string(p)))
	return len(p), nil
}

// exchange is one request and its response.
type exchange struct {
	flow     *flow
	request  *http.Request
	host     string // what it is to
	url      string // for the record
	began    time.Time
	upstream atomic.Value // string: ADDRESS:PORT
	sent     atomic.Int64
	received atomic.Int64
	status   int
	streamed bool // nobody knows how long the response is
	empty    bool // the response has no body
	err      error
	granted  []string // the grants whose headers were put on it
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange { return ctx.Value(exchangeKey{}).(*exchange) }

// handler judges every request and relays those that are allowed.
func (p *Proxy) handler() http.Handler {
	relay := &httputil.ReverseProxy{
		Rewrite:        rewrite,
		Transport:      roundTripper{p.upstreams},
		FlushInterval:  -1, // every read is written at once
		ModifyResponse: countResponse,
		ErrorHandler:   upstreamError,
		ErrorLog:       log.New(debugWriter{p.config.Log}, "", 0),
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x := &exchange{flow: flowOf(r.Context()), request: r, began: time.Now()}
		p.open.Add(1) // its record may come after its flow's
		defer p.open.Done()
		if r.ProtoMajor == 1 {
			defer x.flow.http1.finish()
			if m := x.flow.http1.malformed(); m != nil {
				x.answerMalformed(w, m)
				return
			}
		}
		if refusal := x.identify(); refusal != nil {
			x.refuse(w, refusal)
			return
		}
		if x.flow.opened("http") != nil {
			panic(http.ErrAbortHandler)
		}
		defer x.record()
		if r.ProtoMajor == 1 {
			// HTTP/1 clients as well may send while they receive.
			_ = http.NewResponseController(w).EnableFullDuplex()
		}
		if r.Trailer == nil && r.ContentLength < 0 {
			r.Trailer = make(http.Header) // for one that was not announced
		}
		ctx := context.WithValue(r.Context(), exchangeKey{}, x)
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
			GotConn: func(info httptrace.GotConnInfo) { x.upstream.Store(info.Conn.RemoteAddr().String()) },
		})
		r = r.WithContext(ctx) // net/http looks at the body of its own
		if r.Body != nil && r.Body != http.NoBody {
			r.Body = &countedBody{ReadCloser: r.Body, count: &x.sent}
		}
		relay.ServeHTTP(&answer{w, x}, r)
	})
}

// identify settles what a request is to and judges it.
func (x *exchange) identify() *refusal {
	f, r := x.flow, x.request
	x.host = f.host()
	defer func() { x.url = x.makeURL() }()
	if r.Method == http.MethodConnect {
		return &refusal{reason: policy.Malformed, detail: "CONNECT: there is no proxy to talk to; connect to the host itself"}
	}
	if r.Host != "" {
		name, port := r.Host, ""
		if host, digits, err := net.SplitHostPort(r.Host); err == nil {
			name, port = host, digits
		}
		host, err := policy.Host(name)
		if err != nil {
			return &refusal{reason: policy.Malformed, detail: err.Error()}
		}
		switch {
		case f.name == "" && !f.tls:
			x.host = host // the client dialled an address; this names it
		case host != f.host():
			return fronting("Host", host, f.host())
		}
		if port != "" && port != strconv.Itoa(int(f.destination.Port())) {
			return fronting("Host", r.Host, net.JoinHostPort(x.host, strconv.Itoa(int(f.destination.Port()))))
		}
	}
	if most := f.proxy.config.Limits.HeaderBytes; headBytes(r) > most {
		return &refusal{reason: policy.Malformed, status: http.StatusRequestHeaderFieldsTooLarge, detail: fmt.Sprintf("a head of more than %d bytes", most)}
	}
	path, _, _ := strings.Cut(target(r), "?")
	if !strings.HasPrefix(path, "/") && path != "*" {
		return &refusal{reason: policy.Malformed, detail: "the request is for no path"}
	}
	if strings.HasPrefix(path, "//") && path != r.URL.EscapedPath() {
		// The library would send it in another spelling: see rewrite.
		return &refusal{reason: policy.Malformed, detail: "the path begins with two slashes, and has characters in it that are to be escaped"}
	}
	for _, method := range methods(r) {
		refused := f.judge(policy.Target{Host: x.host, Protocol: policy.HTTP, Method: method, Path: path})
		if refused != nil {
			return refused
		}
	}
	return x.checkGrants()
}

// headBytes is the length of a request's head in HTTP/1's form, in which HTTP/2
// puts it, too.
func headBytes(r *http.Request) int {
	n := len(r.Method) + len(r.RequestURI) + len(r.Host)
	for name, values := range r.Header {
		for _, value := range values {
			n += len(name) + len(": \r\n") + len(value)
		}
	}
	return n
}

// methods are those that a server may take a request to have: some take another
// than the first line's from a header.
func methods(r *http.Request) []string {
	found := []string{r.Method}
	for _, name := range []string{"X-Http-Method-Override", "X-Http-Method", "X-Method-Override"} {
		for _, value := range r.Header[name] {
			found = append(found, strings.ToUpper(strings.TrimSpace(value)))
		}
	}
	return found
}

func (x *exchange) makeURL() string {
	scheme, standard := "http", "80"
	if x.flow.tls {
		scheme, standard = "https", "443"
	}
	host := x.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port := strconv.Itoa(int(x.flow.destination.Port())); port != standard {
		host += ":" + port
	}
	path := target(x.request)
	if !strings.HasPrefix(path, "/") && path != "*" {
		path = "" // it would be read as a part of the host
	}
	return redactURL(scheme + "://" + host + path)
}

// target is a request's path and query, byte for byte as the client wrote them.
func target(r *http.Request) string {
	if strings.HasPrefix(r.RequestURI, "/") {
		return r.RequestURI
	}
	return r.URL.RequestURI() // absolute-form, or "*"
}

// rewrite makes the request for the upstream: the client's own, to where the flow
// goes. The path goes out as it was written, since signatures are over its bytes.
func rewrite(pr *httputil.ProxyRequest) {
	x := exchangeOf(pr.In.Context())
	out := pr.Out
	out.Host = pr.In.Host
	scheme := "http"
	if x.flow.tls {
		scheme = "https"
	}
	out.URL = &url.URL{
		Scheme:   scheme,
		Host:     net.JoinHostPort(x.host, strconv.Itoa(int(x.flow.destination.Port()))),
		Path:     pr.In.URL.Path,
		RawPath:  pr.In.URL.RawPath,
		RawQuery: pr.In.URL.RawQuery, ForceQuery: pr.In.URL.ForceQuery,
	}
	if path, _, _ := strings.Cut(target(pr.In), "?"); !strings.HasPrefix(path, "//") {
		out.URL.Opaque = path
	}
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if values, ok := pr.In.Header[name]; ok {
			out.Header[name] = values // the library takes them off
		}
	}
	x.putGrants(out.Header)
	out.Trailer = pr.In.Trailer // whose values come behind the body
	if strings.Contains(strings.ToLower(out.Header.Get("Upgrade")), "h2c") {
		// An upgrade to requests that would not be judged is left out, as a
		// server may (RFC 9110, section 7.8), and what is offered beside it.
		out.Header.Del("Upgrade")
		out.Header.Del("Connection")
		out.Header.Del("Http2-Settings")
	}
}

type roundTripper struct{ upstreams *upstreams }

func (t roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	x := exchangeOf(r.Context())
	if x.flow.unreachable != nil {
		return nil, x.flow.unreachable
	}
	return t.upstreams.forRequest(x.request, x.flow.tls).RoundTrip(r)
}

func countResponse(res *http.Response) error {
	x := exchangeOf(res.Request.Context())
	x.status, x.streamed, x.empty = res.StatusCode, res.ContentLength < 0, res.ContentLength == 0
	if res.StatusCode == http.StatusSwitchingProtocols {
		wanted, got := res.Request.Header.Get("Upgrade"), res.Header.Get("Upgrade")
		upstream, ok := res.Body.(upgraded)
		if wanted == "" || !strings.EqualFold(wanted, got) || !ok {
			return fmt.Errorf("the upstream switches to protocol %q, asked for %q", got, wanted)
		}
		x.flow.http1.switchProtocols()
		res.Body = &countedUpgrade{countedBody{upstream, &x.received}, upstream, &x.sent}
		return nil
	}
	res.Body = &countedBody{res.Body, &x.received}
	return nil
}

// upstreamError answers a request whose upstream could not be had.
func upstreamError(w http.ResponseWriter, r *http.Request, err error) {
	x := exchangeOf(r.Context())
	if guard, ok := errors.AsType[*GuardError](err); ok {
		x.refuse(w, guard.refusal(x.host, x.flow.destination.Port()))
		return
	}
	if x.flow.http1 != nil {
		if m := x.flow.http1.malformed(); m != nil {
			x.answerMalformed(w, m)
			return
		}
	}
	x.err = err
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // the client is gone
	}
	err = x.flow.proxy.upstreams.explain(err, x.host, x.flow.destination.Port())
	x.status = http.StatusBadGateway
	x.problem(w, problem{
		Type:   "urn:agentops:upstream",
		Title:  "The upstream could not be reached",
		Status: x.status,
		Detail: describeUpstream(err, x.host),
		Reason: upstreamReason(err),
	})
}

// record writes http.request when the exchange is over, however it ended.
func (x *exchange) record() {
	upstream, _ := x.upstream.Load().(string)
	if errors.Is(x.err, errRefused) && upstream == "" {
		return // a refusal has its own record, and nothing went out
	}
	e := audit.HTTPRequest{
		Flow:          x.flow.id,
		Protocol:      x.request.Proto,
		Method:        x.request.Method,
		URL:           x.url,
		Status:        x.status,
		BytesSent:     x.sent.Load(),
		BytesReceived: x.received.Load(),
		DurationMS:    time.Since(x.began).Milliseconds(),
		UserAgent:     clip(x.request.UserAgent(), 256),
		Upstream:      upstream,
	}
	if upstream != "" {
		e.Grants = x.granted
	}
	if x.err != nil {
		e.Error = x.err.Error()
	} else if err := x.request.Context().Err(); err != nil {
		e.Error = "the client went away"
	}
	if x.flow.proxy.config.Recorder.Append(e) != nil {
		panic(http.ErrAbortHandler)
	}
}

// answer is a response on its way to the client.
type answer struct {
	http.ResponseWriter
	exchange *exchange
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// WriteHeader implements http.ResponseWriter. Absent headers stay absent, and the
// client has the head of a stream before there is something in it.
func (a *answer) WriteHeader(status int) {
	if status >= 200 {
		for _, name := range []string{"Date", "Content-Type"} {
			if a.Header()[name] == nil {
				a.Header()[name] = nil
			}
		}
	}
	a.ResponseWriter.WriteHeader(status)
	if a.exchange.streamed && status >= 200 {
		_ = http.NewResponseController(a.ResponseWriter).Flush() // is seen by the next write
	}
}

// FlushError implements what http.ResponseController looks for. The head of an
// answer without a body is its end, in one frame of HTTP/2: clients of gRPC take
// one with an empty body behind it for broken.
func (a *answer) FlushError() error {
	if a.exchange.empty {
		return nil
	}
	return http.NewResponseController(a.ResponseWriter).Flush()
}

// countedBody counts what is read of a body.
type countedBody struct {
	io.ReadCloser
	count *atomic.Int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.count.Add(int64(n))
	return n, err
}

// countedUpgrade is the upstream's side of an upgraded connection.
type countedUpgrade struct {
	countedBody
	upstream upgraded
	sent     *atomic.Int64
}

// upgraded is what net/http has for a connection that was upgraded.
type upgraded interface {
	io.ReadWriteCloser
	CloseWrite() error
}

func (u *countedUpgrade) CloseWrite() error { return u.upstream.CloseWrite() }

func (u *countedUpgrade) Write(p []byte) (int, error) {
	n, err := u.upstream.Write(p)
	u.sent.Add(int64(n))
	return n, err
}
