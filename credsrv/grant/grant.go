// Package grant keeps what a run may be granted: an AWS role to work with, or a
// header for its requests to one host. An AWS grant is configuration without a
// secret; the value of a header is stored encrypted.
package grant

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// How long a session may last. STS knows no shorter and no longer ones, and a
// role may narrow it.
const (
	MinDuration     = 15 * time.Minute
	DefaultDuration = 15 * time.Minute
	MaxDuration     = 12 * time.Hour
)

// ChainedDuration is the longest session that an identity gets which is itself a
// role, whatever the role's maximum.
const ChainedDuration = time.Hour

const (
	defaultName     = "aws"
	maxPolicyARNs   = 10
	maxPolicyLength = 2048 // characters of the session policy and the policy ARNs
	maxProfile      = 255
)

// Grant is what is stored under a name: an AWS or an HTTP. As JSON it is what may
// be shown of it.
type Grant interface {
	json.Marshaler
	// GrantName is the grant's name: [a-z0-9][a-z0-9._-]{0,31}.
	GrantName() string
	// Hosts are network rules for what the grant is of use with.
	Hosts() []string
	// Check reports the first thing that makes the grant unusable, as an *Error.
	Check() error
	// stored is its document in the store.
	stored() any
}

// AWS is a role for runs to work with.
type AWS struct {
	Name            string        // [a-z0-9][a-z0-9._-]{0,31}
	RoleARN         string        //
	Region          string        // of the role's partition
	SessionDuration time.Duration // whole seconds, MinDuration to MaxDuration
	ExternalID      string        // that the role's trust policy asks for; may be empty
	Profile         string        // the host's AWS profile; empty: the SDK's default chain
	SessionPolicy   string        // JSON that narrows the role further; may be empty
	PolicyARNs      []string      // managed policies that narrow it likewise
	Verified        *Verified     // nil: it was never tried
}

// Verified is what a trial of a grant showed.
type Verified struct {
	Caller      string // ARN of the host's identity
	AssumedRole string // ARN of the session
	Chained     bool   // the host's identity was itself a role, which caps sessions at 1 h
	At          time.Time
}

// New returns a grant with what was left out filled in: the name "aws", the
// region by the role's partition, and DefaultDuration. White space that only
// counts towards the limit is taken out of the session policy. An unusable value is
// an *Error.
func New(a AWS) (AWS, error) {
	if a.Name == "" {
		a.Name = defaultName
	}
	if a.Region == "" {
		a.Region = a.Partition().DefaultRegion
	}
	if a.SessionDuration == 0 {
		a.SessionDuration = DefaultDuration
	}
	var compact bytes.Buffer
	if json.Compact(&compact, []byte(a.SessionPolicy)) == nil {
		a.SessionPolicy = compact.String()
	}
	a.PolicyARNs = slices.Clone(a.PolicyARNs)
	return a, a.Check()
}

// isName reports whether a grant can have a name.
func isName(name string) bool {
	return made(name, lower+digits+"._-", 1, 32) && strings.Trim(name[:1], lower+digits) == ""
}

func checkName(name string) error {
	if isName(name) {
		return nil
	}
	return bad(fmt.Errorf("%q cannot be the name of a grant", name), "write 1 to 32 of a-z 0-9 . _ -, a letter or digit first")
}

// GrantName implements Grant.
func (a AWS) GrantName() string { return a.Name }

// Check reports the first thing that makes a grant unusable, as an *Error.
func (a AWS) Check() error {
	if err := checkName(a.Name); err != nil {
		return err
	}
	if a.Name == "default" {
		return bad(errors.New(`a grant cannot have the name "default"`), "AWS's default profile is that of a run's first grant; write another name")
	}
	role, err := parseRole(a.RoleARN)
	if err != nil {
		return err
	}
	for _, check := range []func(iamARN) error{a.checkRegion, a.checkSession, a.checkPolicies} {
		if err := check(role); err != nil {
			return err
		}
	}
	return nil
}

func (a AWS) checkRegion(role iamARN) error {
	p := role.partition
	if p.HasRegion(a.Region) {
		return nil
	}
	err := fmt.Errorf("%q is not a region of partition %s, which the role is in", a.Region, p.Name)
	if other, ok := partitionOf(a.Region); ok {
		err = fmt.Errorf("region %s is of partition %s, the role of partition %s", a.Region, other.Name, p.Name)
	}
	return bad(err, "write a region of %s, such as %s", p.Name, p.DefaultRegion)
}

func (a AWS) checkSession(iamARN) error {
	if err := checkDuration(a.SessionDuration); err != nil {
		return err
	}
	if a.ExternalID != "" && !made(a.ExternalID, nameSet+":/", 2, 1224) {
		return bad(fmt.Errorf("external id %q cannot be one", shorten(a.ExternalID)),
			"write 2 to 1224 of A-Z a-z 0-9 _ + = , . @ : / -, as in the role's trust policy (sts:ExternalId)")
	}
	if len(a.Profile) > maxProfile || !utf8.ValidString(a.Profile) || strings.TrimSpace(a.Profile) != a.Profile ||
		strings.ContainsFunc(a.Profile, func(r rune) bool { return !unicode.IsPrint(r) || r == '[' || r == ']' }) {
		return bad(fmt.Errorf("%q cannot be the name of an AWS profile", shorten(a.Profile)),
			"write the name of a profile in the host's ~/.aws/config; aws configure list-profiles prints them")
	}
	return nil
}

func (a AWS) checkPolicies(role iamARN) error {
	if err := checkSessionPolicy(a.SessionPolicy); err != nil {
		return err
	}
	if n := len(a.PolicyARNs); n > maxPolicyARNs {
		return bad(fmt.Errorf("there are %d policy ARNs, a session takes %d", n, maxPolicyARNs),
			"put what they allow together in one --session-policy")
	}
	length := utf8.RuneCountInString(a.SessionPolicy)
	for _, text := range a.PolicyARNs {
		policy, err := parsePolicyARN(text)
		if err != nil {
			return err
		}
		if policy.partition.Name != role.partition.Name {
			return bad(fmt.Errorf("policy %s is of partition %s, the role of partition %s", text, policy.partition.Name, role.partition.Name),
				"write a policy of the role's partition")
		}
		if policy.account != "aws" && policy.account != role.account {
			return bad(fmt.Errorf("policy %s is of account %s, the role of account %s", text, policy.account, role.account),
				"write a policy of the role's own account, or one of AWS: arn:%s:iam::aws:policy/NAME", role.partition.Name)
		}
		length += len(text)
	}
	if text, ok := duplicate(a.PolicyARNs); ok {
		return bad(fmt.Errorf("policy %s is given twice", text), "give it once")
	}
	if length > maxPolicyLength {
		return bad(fmt.Errorf("the session policy and the policy ARNs are %d characters long together, STS takes %d", length, maxPolicyLength),
			"shorten the session policy: use * in actions, or put it into a managed policy for --policy-arn")
	}
	return nil
}

// checkSessionPolicy checks the form of an inline policy. What it says is for STS
// to judge.
func checkSessionPolicy(text string) error {
	const hint = `write an IAM policy: {"Version": "2012-10-17", "Statement": [...]}`
	if text == "" {
		return nil
	}
	if !json.Valid([]byte(text)) {
		return bad(fmt.Errorf("the session policy is not JSON: %w", json.Unmarshal([]byte(text), new(any))), hint)
	}
	if !strings.HasPrefix(strings.TrimLeft(text, " \t\r\n"), "{") {
		return bad(fmt.Errorf("the session policy is JSON, but not an object"), hint)
	}
	for _, r := range text {
		if r > 0xff {
			return bad(fmt.Errorf("the session policy has %q in it, which STS does not take", r),
				"write it as \\uXXXX: STS takes characters up to U+00FF")
		}
	}
	return nil
}

// ParseDuration reads the duration of a session; an unusable one is an *Error.
func ParseDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, bad(fmt.Errorf("session duration %q is not a duration", text), "%s", durationHint)
	}
	return d, checkDuration(d)
}

const durationHint = "write 15m to 12h, such as 15m, 1h or 1h30m; the role's own maximum is 1h unless it was raised"

func checkDuration(d time.Duration) error {
	if d < MinDuration || d > MaxDuration {
		return bad(fmt.Errorf("session duration %s is out of range", d), "%s", durationHint)
	}
	if d%time.Second != 0 {
		return bad(fmt.Errorf("session duration %s is not in whole seconds", d), "%s", durationHint)
	}
	return nil
}

// Partition is the one of the role; the zero Partition when the role's ARN is not
// a good one.
func (a AWS) Partition() Partition {
	role, _ := parseRole(a.RoleARN) // the zero one
	return role.partition
}

// Hosts are network rules for what the grant is of use with: every endpoint of
// its partition.
func (a AWS) Hosts() []string {
	suffixes := a.Partition().Suffixes
	rules := make([]string, len(suffixes))
	for i, suffix := range suffixes {
		rules[i] = "*." + suffix
	}
	return rules
}

// shorten keeps a message in one line of a terminal.
func shorten(text string) string {
	const most = 64
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}
