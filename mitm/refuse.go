package mitm

import (
	"cmp"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"agentops/audit"
	"agentops/mitm/policy"
)

// errRefused marks an exchange that was refused.
var errRefused = errors.New("refused")

// refused records that a request was refused, and returns the answer. An error is the
// journal's: then there is none.
func (x *exchange) refused(r *refusal) (problem, error) {
	x.status, x.err = cmp.Or(r.status, http.StatusForbidden), errRefused
	f := x.flow
	if err := f.opened("http"); err != nil {
		return problem{}, err
	}
	f.refused.Store(true) // the flow needs no record of its own
	err := f.proxy.config.Recorder.Append(audit.Refused{
		Flow:        f.id,
		Protocol:    "http",
		Destination: f.destination.String(),
		Host:        x.host,
		Port:        f.destination.Port(),
		Method:      x.request.method,
		URL:         x.url,
		Reason:      string(r.reason),
		Rule:        r.rule,
		Detail:      r.detail,
		Process:     f.process,
	})
	return problem{
		Type:   "urn:agentops:refused:" + string(r.reason),
		Title:  "Refused by this run's policy",
		Status: x.status,
		Detail: r.detail,
		Reason: r.reason,
		Rule:   r.rule,
		File:   r.source,
		Hint:   r.hint,
	}, err
}

// malformed records that a client has sent what is no HTTP/1, and returns the answer.
func (f *flow) malformed(m *malformed) (problem, error) {
	if err := f.opened("http"); err != nil {
		return problem{}, err
	}
	f.refused.Store(true)
	return problem{
			Type:   "urn:agentops:refused:" + string(policy.Malformed),
			Title:  "The request is not well-formed",
			Status: m.status,
			Detail: m.detail,
			Reason: policy.Malformed,
		}, f.proxy.config.Recorder.Append(audit.Refused{
			Flow:        f.id,
			Protocol:    "http",
			Destination: f.destination.String(),
			Host:        f.host(),
			Port:        f.destination.Port(),
			Reason:      string(policy.Malformed),
			Detail:      m.detail,
			Process:     f.process,
		})
}

// failed is the answer to a request whose upstream could not be had, or has not
// answered.
func (x *exchange) failed(err error) (problem, error) {
	if guard, ok := errors.AsType[*GuardError](err); ok {
		return x.refused(guard.refusal(x.host, x.flow.destination.Port()))
	}
	x.status, x.err = http.StatusBadGateway, err
	err = x.flow.proxy.upstreams.explain(err, x.host, x.flow.destination.Port())
	return problem{
		Type:   "urn:agentops:upstream",
		Title:  "The upstream could not be reached",
		Status: x.status,
		Detail: describeUpstream(err, x.host),
		Reason: upstreamReason(err),
	}, nil
}

// problem is a problem document (RFC 9457).
type problem struct {
	Type   string        `json:"type"`
	Title  string        `json:"title"`
	Status int           `json:"status"`
	Detail string        `json:"detail"`
	Host   string        `json:"host"`
	Port   uint16        `json:"port"`
	Reason policy.Reason `json:"reason,omitempty"`
	Rule   string        `json:"rule,omitempty"` // that decided
	File   string        `json:"file,omitempty"` // where it stands
	Hint   string        `json:"hint,omitempty"` // what would allow it
}

// String is the document in one line.
func (p problem) String() string {
	text := "agent: " + p.Title + ": " + p.Detail
	if p.Hint != "" {
		text += "; to allow it: " + p.Hint
	}
	return strings.Join(strings.Fields(text), " ")
}

// document returns a problem's media type and text: one line for a client that takes
// nothing but text.
func (x *exchange) document(p problem) (kind string, text []byte, err error) {
	p.Host, p.Port = x.host, x.flow.destination.Port()
	if onlyText(x.request.values(acceptField)) {
		return "text/plain; charset=utf-8", []byte(p.String() + "\n"), nil
	}
	text, err = json.Marshal(p)
	return "application/problem+json", append(text, '\n'), err
}

// onlyText reports whether all that a client accepts is text (RFC 9110, section
// 12.5.1). A client that does not say accepts anything.
func onlyText(accept []string) bool {
	text := false
	for kind := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		kind, parameters, _ := strings.Cut(strings.ToLower(strings.TrimSpace(kind)), ";")
		if kind == "" || refusesKind(parameters) {
			continue
		}
		if !strings.HasPrefix(kind, "text/") {
			return false
		}
		text = true
	}
	return text
}

// refusesKind reports whether the weight of a media type is zero.
func refusesKind(parameters string) bool {
	for parameter := range strings.SplitSeq(parameters, ";") {
		if q, ok := strings.CutPrefix(strings.TrimSpace(parameter), "q="); ok {
			weight, err := strconv.ParseFloat(q, 64)
			return err == nil && weight == 0
		}
	}
	return false
}
