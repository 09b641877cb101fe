package awsstub

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws/arn"
)

// User is an identity that AWS knows without having been asked for it: the host's.
type User struct {
	AccessKeyID     string
	SecretAccessKey string
	SessionToken    string // that its requests must carry; empty: none
	ARN             string // that of an assumed role makes what it assumes role chaining
}

// identity is who the user is to AWS.
func (u User) identity() identity {
	return identity{u.ARN, "AIDASTANDIN", strings.Contains(u.ARN, ":assumed-role/")}
}

// Role is what can be assumed.
type Role struct {
	ARN         string
	ExternalID  string        // that callers must send; empty: none is asked for
	MaxDuration time.Duration // of sessions; 0: an hour
	TrustedBy   []string      // the callers' ARNs; empty: whoever asks
}

// Config configures a Stub.
type Config struct {
	Users []User
	Roles []Role
	// Lifetime is that of sessions, whatever they ask for; 0: as they ask.
	Lifetime time.Duration
	Buckets  map[string]map[string][]byte // objects by bucket and key; copied
	Now      func() time.Time             // the clock of AWS; nil: time.Now
}

// ready checks c and returns a copy with its defaults.
func (c Config) ready() (Config, error) {
	for _, user := range c.Users {
		if _, err := arn.Parse(user.ARN); err != nil {
			return c, fmt.Errorf("user %s: %w", user.AccessKeyID, err)
		}
	}
	for _, role := range c.Roles {
		if parsed, err := arn.Parse(role.ARN); err != nil || !strings.HasPrefix(parsed.Resource, "role/") {
			return c, fmt.Errorf("role %s: it is not a role's ARN", role.ARN)
		}
	}
	buckets := make(map[string]map[string][]byte)
	for name, objects := range c.Buckets {
		if buckets[name] = maps.Clone(objects); objects == nil {
			buckets[name] = make(map[string][]byte)
		}
	}
	c.Buckets = buckets
	if c.Now == nil {
		c.Now = time.Now
	}
	return c, nil
}

// Failure is an answer to order for one call of AssumeRole.
type Failure struct {
	Code    string          // of STS; empty: the call goes on, after Block
	Message string          // empty: one that names Code
	Block   <-chan struct{} // nil, or the call waits until it is closed: a slow STS
}

// wait takes as long as was ordered, or until who asked is gone.
func (f Failure) wait(ctx context.Context) {
	if f.Block == nil {
		return
	}
	select {
	case <-f.Block:
	case <-ctx.Done():
	}
}

// refusal is the answer; nil where the call goes on.
func (f Failure) refusal() *apiError {
	if f.Code == "" {
		return nil
	}
	return &apiError{stsStatus(f.Code), f.Code, cmp.Or(f.Message, "ordered: "+f.Code)}
}

// stsStatus is the HTTP status that STS sends with a code.
func stsStatus(code string) int {
	switch code {
	case "AccessDenied", "ExpiredToken", "InvalidClientTokenId", "SignatureDoesNotMatch",
		"RegionDisabledException", "MissingAuthenticationToken", "UnrecognizedClientException":
		return http.StatusForbidden
	}
	return http.StatusBadRequest
}
