package mitm

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"

	"agentops/audit"
	"agentops/mitm/policy"
)

// errRefused marks an exchange that was refused.
var errRefused = errors.New("refused by policy")

// refuse answers a request with the reason for its refusal, and records it.
func (x *exchange) refuse(w http.ResponseWriter, r *refusal) {
	x.status, x.err = http.StatusForbidden, errRefused
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
	x.problem(w, http.StatusForbidden, "Refused by this run's policy", x.explain(r), r)
}

// explain says a refusal in words.
func (x *exchange) explain(r *refusal) string {
	address := net.JoinHostPort(x.host, strconv.Itoa(int(x.flow.destination.Port())))
	switch r.reason {
	case policy.Denied:
		return fmt.Sprintf("%s is denied by the rule %q", address, r.rule)
	case policy.NotAllowed:
		return fmt.Sprintf("no rule allows %s; to allow it: agent run --allow %s", address, address)
	}
	return r.detail
}

// problem writes a problem document (RFC 9457).
func (x *exchange) problem(w http.ResponseWriter, status int, title, detail string, r *refusal) {
	document := map[string]any{
		"type":   "about:blank",
		"title":  title,
		"status": status,
		"detail": detail,
		"host":   x.host,
		"port":   x.flow.destination.Port(),
	}
	if r != nil {
		document["reason"] = r.reason
		if r.rule != "" {
			document["rule"] = r.rule
		}
	}
	body, err := json.Marshal(document)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)+1))
	w.WriteHeader(status)
	// A client that does not listen has its answer in the journal.
	_, _ = w.Write(append(body, '\n'))
}
