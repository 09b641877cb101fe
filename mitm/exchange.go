package mitm

import (
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"agentops/audit"
	"agentops/mitm/policy"
)

// exchange is one request and its response.
type exchange struct {
	flow     *flow
	request  *head
	protocol string // that the client speaks
	host     string // what it is to
	url      string // for the record
	began    time.Time

	upstream       string   // ADDRESS:PORT
	granted        []string // the grants whose headers were put on it
	sent, received int64    // of the bodies
	status         int
	err            error
}

// errClientGone says that nobody waits for the response.
var errClientGone = errors.New("the client went away")

// identify settles what a request is to and judges it.
func (x *exchange) identify() *refusal {
	f, r := x.flow, x.request
	x.host = f.host()
	defer func() { x.url = x.makeURL() }()
	if r.method == http.MethodConnect && r.protocol == "" {
		return &refusal{reason: policy.Malformed, detail: "CONNECT: there is no proxy to talk to; connect to the host itself"}
	}
	if r.authority != "" && r.authority != x.host {
		if refused := x.checkAuthority(r.authority); refused != nil {
			return refused
		}
	}
	path, _, _ := strings.Cut(r.target, "?")
	if !strings.HasPrefix(path, "/") && path != "*" {
		return &refusal{reason: policy.Malformed, detail: "the request is for no path"}
	}
	for method := range r.methods() {
		refused := f.judge(policy.Target{Host: x.host, Protocol: policy.HTTP, Method: method, Path: path})
		if refused != nil {
			return refused
		}
	}
	return x.checkGrants()
}

// checkAuthority refuses a request for another host than its flow's. Where the client
// has dialled an address, this names the host.
func (x *exchange) checkAuthority(authority string) *refusal {
	f := x.flow
	name, port := authority, ""
	if host, digits, err := net.SplitHostPort(authority); err == nil {
		name, port = host, digits
	}
	host, err := policy.Host(name)
	if err != nil {
		return &refusal{reason: policy.Malformed, detail: err.Error()}
	}
	switch {
	case f.name == "" && !f.tls:
		x.host = host
	case host != f.host():
		return fronting("Host", host, f.host())
	}
	if port != "" && port != strconv.Itoa(int(f.destination.Port())) {
		return fronting("Host", authority, joinAddress(x.host, f.destination.Port()))
	}
	return nil
}

func (x *exchange) endpoint() endpoint {
	to := x.flow.endpoint()
	to.host = x.host
	return to
}

// address is the host, and the port unless it goes without saying.
func (x *exchange) address() string {
	host, standard := x.host, uint16(80)
	if x.flow.tls {
		standard = 443
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port := x.flow.destination.Port(); port != standard {
		host += ":" + strconv.Itoa(int(port))
	}
	return host
}

func (x *exchange) makeURL() string {
	scheme, path := "http://", x.request.target
	if x.flow.tls {
		scheme = "https://"
	}
	if !strings.HasPrefix(path, "/") && path != "*" {
		path = "" // it would be read as a part of the host
	}
	return redactURL(scheme + x.address() + path)
}

// record writes http.request when the exchange is over, however it ended.
func (x *exchange) record() error {
	if errors.Is(x.err, errRefused) && x.upstream == "" {
		return nil // a refusal has its own record, and nothing went out
	}
	e := audit.HTTPRequest{
		Flow:          x.flow.id,
		Protocol:      x.protocol,
		Method:        x.request.method,
		URL:           x.url,
		Status:        x.status,
		BytesSent:     x.sent,
		BytesReceived: x.received,
		DurationMS:    time.Since(x.began).Milliseconds(),
		UserAgent:     clip(x.request.value(agentField), 256),
		Upstream:      x.upstream,
	}
	if x.upstream != "" {
		e.Grants = x.granted
	}
	if x.err != nil {
		e.Error = x.err.Error()
	}
	return x.flow.proxy.config.Recorder.Append(e)
}
