package awsstub

import (
	"context"
	"errors"
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
	Account         string // twelve digits
	Name            string // of the user; of a session ROLE or ROLE/SESSION
	// Session makes it a session of a role, whose requests carry SessionToken.
	// What such a one assumes is role chaining.
	Session      bool
	SessionToken string
	// ARN, unless it is empty, is used in place of the one of Account and Name;
	// that of an assumed role makes AssumeRole a role chaining, too.
	ARN string
}

// identity is who the user is to AWS.
func (u User) identity() identity {
	role, name, named := strings.Cut(u.Name, "/")
	if !named {
		name = "session"
	}
	switch {
	case u.ARN != "":
		return identity{u.ARN, "AIDASTANDIN", u.Session || strings.Contains(u.ARN, ":assumed-role/")}
	case u.Session:
		return identity{fmt.Sprintf("arn:aws:sts::%s:assumed-role/%s/%s", u.Account, role, name), "AROASTANDIN:" + name, true}
	}
	return identity{fmt.Sprintf("arn:aws:iam::%s:user/%s", u.Account, u.Name), "AIDASTANDIN", false}
}

func (u User) check() error {
	_, err := arn.Parse(u.identity().arn)
	switch {
	case u.AccessKeyID == "" || u.SecretAccessKey == "":
		return errors.New("it has no access key")
	case u.ARN == "" && (u.Account == "" || u.Name == ""):
		return errors.New("it has neither an ARN nor account and name")
	case u.Session && u.SessionToken == "":
		return errors.New("it is a session without a token")
	}
	return err
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
		if err := user.check(); err != nil {
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
	Code       string          // of STS; empty: the call goes on, after Block and Delay
	HTTPStatus int             // 0: the one that STS sends with Code
	Message    string          // empty: one that names Code
	Block      <-chan struct{} // nil, or the call waits until it is closed
	Delay      time.Duration   // that the call waits, after Block; for demonstrations
	// Status is HTTPStatus by its earlier name.
	Status int
}

// wait takes as long as was ordered, or until who asked is gone.
func (f Failure) wait(ctx context.Context) {
	if f.Block != nil {
		select {
		case <-f.Block:
		case <-ctx.Done():
		}
	}
	if f.Delay > 0 {
		timer := time.NewTimer(f.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}

// refusal is the answer; nil where the call goes on.
func (f Failure) refusal() *apiError {
	if f.Code == "" {
		return nil
	}
	status, message := f.HTTPStatus, f.Message
	if status == 0 {
		status = f.Status
	}
	if status == 0 {
		status = stsStatus(f.Code)
	}
	if message == "" {
		message = "ordered: " + f.Code
	}
	return &apiError{status, f.Code, message}
}

// stsStatus is the HTTP status that STS sends with a code.
func stsStatus(code string) int {
	switch code {
	case "AccessDenied", "ExpiredToken", "InvalidClientTokenId", "SignatureDoesNotMatch",
		"RegionDisabledException", "MissingAuthenticationToken", "UnrecognizedClientException":
		return http.StatusForbidden
	case "InternalFailure":
		return http.StatusInternalServerError
	case "ServiceUnavailable":
		return http.StatusServiceUnavailable
	}
	return http.StatusBadRequest
}
