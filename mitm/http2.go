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

	"agentops/mitm/policy"

	"github.com/sirupsen/logrus"
)

type flowKey struct{}

// flowOf is the flow that a request came on.
func flowOf(ctx context.Context) *flow { return ctx.Value(flowKey{}).(*flow) }

// newHTTP2Server serves HTTP/2, over TLS and by prior knowledge.
func newHTTP2Server(p *Proxy) *http.Server {
	s := &http.Server{
		Handler:           p.handler(),
		ReadHeaderTimeout: p.config.Limits.HeaderTimeout,
		IdleTimeout:       p.config.Limits.IdleTimeout,
		MaxHeaderBytes:    2 * p.config.Limits.HeaderBytes, // the limit is tooLong's, which is recorded
		// OPTIONS * is for the upstream to answer.
		DisableGeneralOptionsHandler: true,
		Protocols:                    new(http.Protocols),
		ErrorLog:                     log.New(debugWriter{p.config.Log}, "", 0),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			var f *flow
			switch conn := conn.(type) {
			case *tls.Conn:
				f = conn.NetConn().(*helloConn).flow
			case *bufferedConn:
				f = conn.flow
			}
			return context.WithValue(ctx, flowKey{}, f)
		},
	}
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

// stream is one exchange of HTTP/2.
type stream struct {
	exchange
	upstream       atomic.Value // string: ADDRESS:PORT
	sent, received atomic.Int64
	streamed       bool // nobody knows how long the response is
	empty          bool // the response has no body
}

type streamKey struct{}

func streamOf(ctx context.Context) *stream { return ctx.Value(streamKey{}).(*stream) }

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
		x := &stream{exchange: exchange{flow: flowOf(r.Context()), request: headOf(r), protocol: r.Proto, began: time.Now()}}
		p.open.Add(1) // its record may come after its flow's
		defer p.open.Done()
		refused := x.identify()
		if refused == nil {
			refused = respelled(r)
		}
		if refused == nil {
			refused = x.tooLong()
		}
		if refused != nil {
			p, err := x.refused(refused)
			x.answer(w, p, err)
			return
		}
		if x.flow.opened("http") != nil {
			panic(http.ErrAbortHandler)
		}
		defer x.finish(r)
		if r.Trailer == nil && r.ContentLength < 0 {
			r.Trailer = make(http.Header) // for one that was not announced
		}
		ctx := context.WithValue(r.Context(), streamKey{}, x)
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

// headOf is what a request says to us.
func headOf(r *http.Request) *head {
	h := &head{method: r.Method, target: r.RequestURI, authority: r.Host}
	if !strings.HasPrefix(h.target, "/") {
		h.target = r.URL.RequestURI() // absolute-form, or "*"
	}
	for name, values := range r.Header {
		for _, value := range values {
			h.fields = append(h.fields, field{fieldKind(name), name, value})
		}
	}
	return h
}

// tooLong refuses a head beyond the limit, which is on its length in HTTP/1's form.
func (x *stream) tooLong() *refusal {
	h, most := x.request, x.flow.proxy.config.Limits.HeaderBytes
	n := len(h.method) + len(h.target) + len(h.authority)
	for _, f := range h.fields {
		n += len(f.name) + len(": \r\n") + len(f.value)
	}
	if n <= most {
		return nil
	}
	return &refusal{reason: policy.Malformed, status: http.StatusRequestHeaderFieldsTooLarge, detail: fmt.Sprintf("a head of more than %d bytes", most)}
}

// respelled refuses what the library would send in another spelling: see rewrite.
func respelled(r *http.Request) *refusal {
	path, _, _ := strings.Cut(r.RequestURI, "?")
	if strings.HasPrefix(path, "//") && path != r.URL.EscapedPath() {
		return &refusal{reason: policy.Malformed, detail: "the path begins with two slashes, and has characters in it that are to be escaped"}
	}
	return nil
}

// rewrite makes the request for the upstream: the client's own, to where the flow
// goes. The path goes out as it was written, since signatures are over its bytes.
func rewrite(pr *httputil.ProxyRequest) {
	x := streamOf(pr.In.Context())
	out := pr.Out
	out.Host = pr.In.Host
	scheme := "http"
	if x.flow.tls {
		scheme = "https"
	}
	out.URL = &url.URL{
		Scheme:   scheme,
		Host:     joinAddress(x.host, x.flow.destination.Port()),
		Path:     pr.In.URL.Path,
		RawPath:  pr.In.URL.RawPath,
		RawQuery: pr.In.URL.RawQuery, ForceQuery: pr.In.URL.ForceQuery,
	}
	if path, _, _ := strings.Cut(x.request.target, "?"); !strings.HasPrefix(path, "//") {
		out.URL.Opaque = path
	}
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if values, ok := pr.In.Header[name]; ok {
			out.Header[name] = values // the library takes them off
		}
	}
	for _, g := range x.putGrants() {
		for name := range out.Header {
			if g.covers(name) {
				delete(out.Header, name)
			}
		}
		out.Header[g.Header] = []string{g.Value()}
	}
	out.Trailer = pr.In.Trailer // whose values come behind the body
}

type roundTripper struct{ upstreams *upstreams }

func (t roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	x := streamOf(r.Context())
	if x.flow.unreachable != nil {
		return nil, x.flow.unreachable
	}
	if x.flow.tls {
		return t.upstreams.http2.RoundTrip(r)
	}
	return t.upstreams.h2c.RoundTrip(r)
}

func countResponse(res *http.Response) error {
	x := streamOf(res.Request.Context())
	x.status, x.streamed, x.empty = res.StatusCode, res.ContentLength < 0, res.ContentLength == 0
	if res.StatusCode == http.StatusSwitchingProtocols {
		return errors.New("the upstream switches to another protocol, and was not asked to")
	}
	res.Body = &countedBody{res.Body, &x.received}
	return nil
}

// upstreamError answers a request whose upstream could not be had.
func upstreamError(w http.ResponseWriter, r *http.Request, err error) {
	x := streamOf(r.Context())
	if _, refused := errors.AsType[*GuardError](err); !refused && r.Context().Err() != nil {
		x.err = err
		panic(http.ErrAbortHandler) // the client is gone
	}
	p, err := x.failed(err)
	x.answer(w, p, err)
}

// answer sends a problem, unless what is to be recorded of it could not be.
func (x *stream) answer(w http.ResponseWriter, p problem, unrecorded error) {
	kind, text, err := x.document(p)
	if unrecorded != nil || err != nil {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(p.Status)
	// A client that does not listen has its answer in the journal.
	_, _ = w.Write(text)
}

// finish writes the record.
func (x *stream) finish(r *http.Request) {
	x.exchange.upstream, _ = x.upstream.Load().(string)
	x.exchange.sent, x.exchange.received = x.sent.Load(), x.received.Load()
	if x.err == nil && r.Context().Err() != nil {
		x.err = errClientGone
	}
	if x.record() != nil {
		panic(http.ErrAbortHandler)
	}
}

// answer is a response on its way to the client.
type answer struct {
	http.ResponseWriter
	stream *stream
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
	if a.stream.streamed && status >= 200 {
		_ = http.NewResponseController(a.ResponseWriter).Flush() // is seen by the next write
	}
}

// FlushError implements what http.ResponseController looks for. The head of an
// answer without a body is its end, in one frame of HTTP/2: clients of gRPC take
// one with an empty body behind it for broken.
func (a *answer) FlushError() error {
	if a.stream.empty {
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
