package credsrv

import (
	"context"
	"errors"
	"fmt"

	"agentops/credsrv/grant"

	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
)

// AssumeError says why a role could not be assumed, and by Hint what to do.
type AssumeError struct {
	Role    string
	Caller  string // ARN of the host's identity, where it is known
	Profile string // the host's AWS profile, where one was asked for
	Code    string // of STS; empty: it did not come to an answer

	externalID bool // one was sent
	noIdentity bool
	err        error
}

// newAssumeError explains a failed call. c, when not nil, is asked who the caller
// is, which most of the reasons turn on.
func newAssumeError(ctx context.Context, c *sts.Client, g grant.AWS, err error) *AssumeError {
	e := &AssumeError{Role: g.RoleARN, Profile: g.Profile, externalID: g.ExternalID != "", err: err}
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		e.Code = api.ErrorCode()
	}
	if c != nil && e.Code != "" {
		e.Caller, _ = caller(ctx, c) // an explanation can do without
	}
	return e
}

// Error implements error.
func (e *AssumeError) Error() string {
	if api, ok := errors.AsType[smithy.APIError](e.err); ok {
		return fmt.Sprintf("assume role %s: %s: %s", e.Role, api.ErrorCode(), api.ErrorMessage())
	}
	return fmt.Sprintf("assume role %s: %v", e.Role, e.err)
}

// Unwrap returns the SDK's error.
func (e *AssumeError) Unwrap() error { return e.err }

// Hint says what to do about it.
func (e *AssumeError) Hint() string {
	if e.noIdentity {
		if e.Profile != "" {
			return fmt.Sprintf("the host's AWS profile %q gives no credentials: check ~/.aws/config and ~/.aws/credentials, or log in to it", e.Profile)
		}
		return "the host has no AWS credentials: tried were AWS_ACCESS_KEY_ID, web identity, ~/.aws/config and ~/.aws/credentials, the container endpoint and the instance's metadata; choose a profile with --aws-profile"
	}
	switch e.Code {
	case "AccessDenied":
		who, external := "the host's identity", "no external id was sent (--external-id)"
		if e.Caller != "" {
			who = e.Caller
		}
		if e.externalID {
			external = "an external id was sent, which must be the one the role asks for"
		}
		return fmt.Sprintf("check that the trust policy of %s names %s, and that this may sts:AssumeRole it; %s", e.Role, who, external)
	case "ValidationError":
		if isRole(e.Caller) {
			return "the host's identity is itself a role, which caps sessions at 1 h (role chaining): lower --session-duration to 1h"
		}
		return "the role's maximum session duration may be shorter: lower --session-duration, or raise MaxSessionDuration of the role"
	case "ExpiredToken", "ExpiredTokenException":
		return "the host's own AWS credentials have expired: renew them; nothing has to be restarted"
	case "InvalidClientTokenId", "UnrecognizedClientException", "UnrecognizedClient":
		return "the host's access key is gone, or it belongs to another partition than the role or region"
	case "SignatureDoesNotMatch":
		return "check the host's clock, then its secret access key"
	case "RegionDisabledException":
		return "STS is not active in this region for the account: choose another with --region"
	case "MalformedPolicyDocument", "MalformedPolicyDocumentException":
		return "the session policy is not a valid IAM policy: correct the file of --session-policy"
	case "PackedPolicyTooLarge", "PackedPolicyTooLargeException":
		return "the session policy with its managed policies is too large: shorten it"
	case "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequestsException":
		return fmt.Sprintf("STS throttled all of %d attempts: try again in a while", assumeAttempts)
	case "":
		return "STS could not be reached: check the host's network, and --region"
	}
	return "see the message of STS above"
}
