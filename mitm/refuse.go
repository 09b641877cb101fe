package mitm

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"agentops/audit"
	"agentops/mitm/policy"
)

// errRefused marks an exchange that was refused.
var errRefused = errors.New("refused")

// refuse answers a request with the reason for its refusal, and records it.
func (x *exchange) refuse(w http.ResponseWriter, r *refusal) {
	x.status, x.err = cmp.Or(r.status, http.StatusForbidden), errRefused
	f := x.flow
	if f.opened("http") != nil {
		panic(http.ErrAbortHandler)
	}
	f.refused.Store(true) // the flow needs no record of its own
	err := f.proxy.config.Recorder.Append(audit.Refused{
		Flow:        f.id,
		Protocol:    "http",
		Destination: f.destination.String(),
		Host:        x.host,
		Port:        f.destination.Port(),
		Method:      x.request.Method,
		URL:         x.url,
		Reason:      string(r.reason),
		Rule:        r.rule,
		Detail:      r.detail,
		Process:     f.process,
	})
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	x.problem(w, problem{
		Type:   "urn:agentops:refused:" + string(r.reason),
		Title:  "Refused by this run's policy",
		Status: x.status,
		Detail: r.detail,
		Reason: r.reason,
		Rule:   r.rule,
		File:   r.source,
		Hint:   r.hint,
	})
}

// answerMalformed answers a request whose refusal strictConn has recorded.
func (x *exchange) answerMalformed(w http.ResponseWriter, m *malformed) {
	x.status, x.err = m.status, fmt.Errorf("%w: %w", errRefused, m)
	x.host = x.flow.host()
	w.Header().Set("Connection", "close")
	x.problem(w, problem{
		Type:   "urn:agentops:refused:" + string(policy.Malformed),
		Title:  "The request is not well-formed",
		Status: m.status,
		Detail: m.detail,
		Reason: policy.Malformed,
	})
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

// problem answers with a problem document, or with one line for a client that
// takes nothing but text.
func (x *exchange) problem(w http.ResponseWriter, p problem) {
	p.Host, p.Port = x.host, x.flow.destination.Port()
	kind, body := "text/plain; charset=utf-8", []byte(p.String())
	if !onlyText(x.request.Header.Values("Accept")) {
		var err error
		if body, err = json.Marshal(p); err != nil {
			panic(http.ErrAbortHandler)
		}
		kind = "application/problem+json"
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)+1))
	w.WriteHeader(p.Status)
	// A client that does not listen has its answer in the journal.
	_, _ = w.Write(append(body, '\n'))
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
