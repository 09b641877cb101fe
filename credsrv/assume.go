package credsrv

import (
	"context"
	"fmt"
	"strings"
	"time"

	"agentops/credsrv/grant"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"
)

const (
	assumeTimeout  = 30 * time.Second
	assumeAttempts = 3 // of the SDK, with its own backoff
)

// client makes an STS client with the host's identity as it is now: loaded anew
// each time, since keys in files and variables change under a long run.
func client(ctx context.Context, g grant.AWS) (*sts.Client, error) {
	options := []func(*config.LoadOptions) error{
		config.WithRegion(g.Region),
		config.WithRetryer(func() aws.Retryer {
			return retry.NewStandard(func(o *retry.StandardOptions) { o.MaxAttempts = assumeAttempts })
		}),
	}
	if g.Profile != "" {
		options = append(options, config.WithSharedConfigProfile(g.Profile))
	}
	loaded, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, &AssumeError{Role: g.RoleARN, Profile: g.Profile, err: fmt.Errorf("load the host's AWS configuration: %w", err), noIdentity: true}
	}
	if _, err := loaded.Credentials.Retrieve(ctx); err != nil {
		return nil, &AssumeError{Role: g.RoleARN, Profile: g.Profile, err: fmt.Errorf("find the host's AWS credentials: %w", err), noIdentity: true}
	}
	return sts.NewFromConfig(loaded), nil
}

// assume assumes a grant's role once and also returns the ARN of the session. The
// error is an *AssumeError.
func assume(ctx context.Context, g grant.AWS, session string) (*Credentials, string, error) {
	ctx, cancel := context.WithTimeout(ctx, assumeTimeout)
	defer cancel()
	c, err := client(ctx, g)
	if err != nil {
		return nil, "", err
	}
	input := &sts.AssumeRoleInput{
		RoleArn:         aws.String(g.RoleARN),
		RoleSessionName: aws.String(session),
		DurationSeconds: aws.Int32(int32(g.SessionDuration / time.Second)),
	}
	if g.ExternalID != "" {
		input.ExternalId = aws.String(g.ExternalID)
	}
	if g.SessionPolicy != "" {
		input.Policy = aws.String(g.SessionPolicy)
	}
	for _, arn := range g.PolicyARNs {
		input.PolicyArns = append(input.PolicyArns, types.PolicyDescriptorType{Arn: aws.String(arn)})
	}
	obtained := time.Now()
	output, err := c.AssumeRole(ctx, input)
	if err != nil {
		return nil, "", newAssumeError(ctx, c, g, err)
	}
	got := output.Credentials
	if got == nil || got.Expiration == nil {
		return nil, "", &AssumeError{Role: g.RoleARN, err: fmt.Errorf("STS answered without credentials")}
	}
	return &Credentials{
		AccessKeyID:     aws.ToString(got.AccessKeyId),
		SecretAccessKey: Secret(aws.ToString(got.SecretAccessKey)),
		SessionToken:    Secret(aws.ToString(got.SessionToken)),
		Obtained:        obtained,
		Expiration:      *got.Expiration,
	}, aws.ToString(output.AssumedRoleUser.Arn), nil
}

// caller asks STS who the host is.
func caller(ctx context.Context, c *sts.Client) (string, error) {
	identity, err := c.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		return "", err
	}
	return aws.ToString(identity.Arn), nil
}

// Proof is what one trial of a grant showed.
type Proof struct {
	Caller      string // ARN of the host's identity
	AssumedRole string // ARN of the session
	Chained     bool   // the host's identity is itself a role, which caps sessions at 1 h
	Expiration  time.Time
}

// Prove assumes a grant's role once, with the duration it asks for. The error is
// an *AssumeError.
func Prove(ctx context.Context, g grant.AWS) (Proof, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*assumeTimeout)
	defer cancel()
	c, err := client(ctx, g)
	if err != nil {
		return Proof{}, err
	}
	arn, err := caller(ctx, c)
	if err != nil {
		return Proof{}, newAssumeError(ctx, nil, g, err)
	}
	credentials, session, err := assume(ctx, g, "agentops-grant")
	if err != nil {
		return Proof{}, err
	}
	return Proof{Caller: arn, AssumedRole: session, Chained: isRole(arn), Expiration: credentials.Expiration}, nil
}

// isRole tells whether an identity is a session of a role.
func isRole(arn string) bool { return strings.Contains(arn, ":assumed-role/") }
