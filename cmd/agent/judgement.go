package main

import (
	"fmt"
	"slices"
	"strings"

	"agentops/test/escape/attempt"
)

// attemptVerdict is what became of an attempt, by all that is known of it.
type attemptVerdict string

const (
	verdictBlocked       attemptVerdict = "blocked"
	verdictNotApplicable attemptVerdict = "not applicable"
	verdictEscaped       attemptVerdict = "ESCAPED"
	verdictUnrecorded    attemptVerdict = "unrecorded" // blocked, and the journal does not say who tried
	verdictSlow          attemptVerdict = "slow"       // blocked, and not at once
)

// promptly is how long a refusal may take, in microseconds.
const promptly = 100_000

// judged is an attempt and its verdict.
type judged struct {
	attempt.Result
	Profile  string         `json:"profile"`
	HostPID  int            `json:"host_pid,omitempty"`
	Verdict  attemptVerdict `json:"verdict"`
	Recorded bool           `json:"recorded,omitempty"` // the journal names its process
	Why      string         `json:"why,omitempty"`      // the verdict is not a good one
}

// judgeAttempts compares what attempts saw with what the journal says.
func judgeAttempts(profile string, results []attempt.Result, registered []registration, journal *runJournal) []judged {
	recorded := journal.byProcess()
	list := make([]judged, 0, len(results))
	for _, r := range results {
		j := judged{Result: r, Profile: profile, Verdict: verdictBlocked}
		var pids []int
		for _, reg := range registered {
			if reg.profile == profile && reg.name == r.Name {
				pids = append(pids, reg.pid)
				j.HostPID = reg.pid
			}
		}
		j.Recorded = r.Record != attempt.None && slices.ContainsFunc(pids, func(pid int) bool { return recorded[pid][r.Record] })
		switch {
		case r.Outcome == attempt.NotApplicable:
			j.Verdict = verdictNotApplicable
		case r.Outcome == attempt.Reached:
			j.Verdict, j.Why = verdictEscaped, r.Detail
		case r.Outcome == attempt.Silent:
			j.Verdict, j.Why = verdictSlow, "neither an error nor an answer"
		case r.Record != attempt.None && len(pids) == 0:
			j.Verdict, j.Why = verdictUnrecorded, "its process has not registered"
		case r.Record != attempt.None && !j.Recorded:
			j.Verdict, j.Why = verdictUnrecorded, fmt.Sprintf("no %s record names process %d", r.Record, j.HostPID)
		case r.Micros > promptly:
			j.Verdict, j.Why = verdictSlow, fmt.Sprintf("%d ms", r.Micros/1000)
		}
		list = append(list, j)
	}
	return list
}

// byProcess says which kinds of records name a process.
func (j *runJournal) byProcess() map[int]map[attempt.Record]bool {
	found := make(map[int]map[attempt.Record]bool)
	for _, event := range j.events {
		if event.Process == nil {
			continue
		}
		kinds := found[event.Process.PID]
		if kinds == nil {
			kinds = make(map[attempt.Record]bool)
			found[event.Process.PID] = kinds
		}
		switch event.Type {
		case "flow.open":
			kinds[attempt.Flow] = true
		case "refused":
			kinds[attempt.Refusal], kinds[attempt.Flow] = true, true
			kinds[attempt.Query] = kinds[attempt.Query] || event.Protocol == "dns"
		case "dns.query":
			kinds[attempt.Query] = true
		case "credential.serve":
			kinds[attempt.Credential] = true
		}
	}
	return found
}

// attribute finds out whose sightings are: of who registered last before, by the
// name that they carry themselves if they do.
func attribute(seen []sighting, registered []registration) {
	for i := range seen {
		one, named := &seen[i], seen[i].Attempt
		for _, r := range registered {
			if (named == "" || r.name == named) && !r.at.After(one.Time) {
				one.Attempt, one.Profile = r.name, r.profile
			}
		}
	}
}

// selftestCheck is one check beside the attempts.
type selftestCheck struct {
	Check string `json:"check"`
	OK    bool   `json:"ok"`
	Found string `json:"found,omitempty"`
}

// classTotals counts the verdicts of a class.
type classTotals struct {
	Attempts      int `json:"attempts"`
	Blocked       int `json:"blocked"`
	Recorded      int `json:"recorded"`
	NotApplicable int `json:"not_applicable"`
	Escaped       int `json:"escaped"`
	Unrecorded    int `json:"unrecorded"`
	Slow          int `json:"slow"`
}

func (t *classTotals) count(j judged) {
	t.Attempts++
	if j.Recorded {
		t.Recorded++
	}
	switch j.Verdict {
	case verdictBlocked:
		t.Blocked++
	case verdictNotApplicable:
		t.NotApplicable++
	case verdictEscaped:
		t.Escaped++
	case verdictUnrecorded:
		t.Unrecorded++
	case verdictSlow:
		t.Slow++
	}
}

// selftestReport is all of a test. docs/selftest.md describes it.
type selftestReport struct {
	Schema     int    `json:"schema"`
	Agent      string `json:"agent"`
	Kernel     string `json:"kernel"`
	Host       string `json:"host"`
	Time       string `json:"time"`
	DurationMS int64  `json:"duration_ms"`

	Only       []string                `json:"only,omitempty"`
	Passed     bool                    `json:"passed"`
	Applicable int                     `json:"applicable"` // different attempts
	Totals     classTotals             `json:"totals"`
	Classes    map[string]*classTotals `json:"classes"`
	Control    struct {
		Attempts int      `json:"attempts"`
		Escaped  []string `json:"escaped"`
	} `json:"control"` // the attempts made without a run
	Checks       []selftestCheck `json:"checks"`
	Attempts     []judged        `json:"attempts"`
	Unattributed []sighting      `json:"unattributed"` // of what was seen outside
}

const reportSchema = 1

func (r *selftestReport) check(what string, err error) {
	c := selftestCheck{Check: what, OK: err == nil}
	if err != nil {
		c.Found = err.Error()
	}
	r.Checks = append(r.Checks, c)
}

// see lays what was seen outside to the attempts whose it is.
func (r *selftestReport) see(seen []sighting, registered []registration) {
	attribute(seen, registered)
	for _, one := range seen {
		i := slices.IndexFunc(r.Attempts, func(j judged) bool { return j.Name == one.Attempt && j.Profile == one.Profile })
		if i < 0 {
			r.Unattributed = append(r.Unattributed, one)
			continue
		}
		if j := &r.Attempts[i]; !strings.HasPrefix(j.Why, seenOutside) {
			j.Verdict, j.Why = verdictEscaped, seenOutside+one.What
		}
	}
}

const seenOutside = "seen outside: "

// total counts, and says whether the test was passed.
func (r *selftestReport) total() {
	r.Classes = make(map[string]*classTotals)
	applicable := make(map[string]bool)
	for _, j := range r.Attempts {
		if r.Classes[j.Class] == nil {
			r.Classes[j.Class] = &classTotals{}
		}
		r.Classes[j.Class].count(j)
		r.Totals.count(j)
		if j.Verdict != verdictNotApplicable {
			applicable[j.Name] = true
		}
	}
	r.Applicable = len(applicable)
	r.Passed = r.Totals.Escaped+r.Totals.Unrecorded+r.Totals.Slow+len(r.Unattributed) == 0 && r.Applicable > 0 &&
		!slices.ContainsFunc(r.Checks, func(c selftestCheck) bool { return !c.OK })
}
