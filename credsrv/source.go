package credsrv

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"agentops/audit"
	"agentops/credsrv/grant"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/singleflight"
)

const (
	// clientWait is how long a client waits for a refresh when there are no
	// valid credentials; the helper gives up after 4 s.
	clientWait = 3500 * time.Millisecond
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// Recorder takes events into the run's journal. What it could not take must not
// happen.
type Recorder interface {
	Append(audit.Event) error
}

// SourceConfig configures a Source.
type SourceConfig struct {
	Grant    grant.AWS
	Run      string // id of the run, in the name of the session
	Recorder Recorder
	Log      logrus.FieldLogger
}

// Source keeps the credentials of one grant fresh.
type Source struct {
	config  SourceConfig
	session string
	flight  singleflight.Group // one refresh at a time

	mu      sync.Mutex
	current *Credentials
}

// NewSource fetches a grant's first credentials. The error is an *AssumeError, or
// the recorder's.
func NewSource(ctx context.Context, config SourceConfig) (*Source, error) {
	s := &Source{config: config, session: "agentops-" + config.Run}
	if err := s.refresh(ctx, nil); err != nil {
		return nil, err
	}
	return s, nil
}

// Name is the grant's.
func (s *Source) Name() string { return s.config.Grant.Name }

// refresh assumes the role in place of the credentials that the caller has seen,
// once for all who have seen the same, and records how it went.
func (s *Source) refresh(ctx context.Context, seen *Credentials) error {
	_, err, _ := s.flight.Do("", func() (any, error) {
		if s.held() != seen {
			return nil, nil // done between the caller's look and now
		}
		began := time.Now()
		credentials, _, err := assume(ctx, s.config.Grant, s.session)
		event := audit.CredentialRefresh{
			Grant:      s.config.Grant.Name,
			Role:       s.config.Grant.RoleARN,
			Session:    s.session,
			DurationMS: time.Since(began).Milliseconds(),
		}
		if err != nil {
			event.Error = err.Error()
			return nil, errors.Join(err, s.config.Recorder.Append(event))
		}
		event.AccessKeyID = credentials.AccessKeyID
		event.Expiration = credentials.Expiration.UTC().Format(time.RFC3339)
		if err := s.config.Recorder.Append(event); err != nil {
			return nil, err
		}
		s.mu.Lock()
		s.current = credentials
		s.mu.Unlock()
		return nil, nil
	})
	return err
}

// Refresh renews the credentials ahead of time until ctx ends. While the
// credentials at hand are valid nobody waits for it, however often it fails.
func (s *Source) Refresh(ctx context.Context) {
	retry := firstRetry
	for {
		current := s.held()
		if !waitUntil(ctx, current.renewAt(rand.Float64())) {
			return
		}
		err := s.refresh(ctx, current)
		if err == nil {
			retry = firstRetry
			continue
		}
		if ctx.Err() != nil {
			return
		}
		s.log(err).Warn("renew the run's AWS credentials; the old ones are served while they are valid")
		// Half of each pause is by chance, so that runs that failed together
		// do not come back together.
		pause := retry/2 + rand.N(retry/2)
		if !waitUntil(ctx, time.Now().Add(pause)) {
			return
		}
		retry = min(2*retry, lastRetry)
	}
}

// Credentials returns valid ones: those at hand, else those of a refresh that
// the caller waits for.
func (s *Source) Credentials(ctx context.Context) (*Credentials, error) {
	seen := s.held()
	if seen.valid(time.Now()) {
		return seen, nil
	}
	done := make(chan error, 1)
	// It goes on when this client has given up: others wait for it too.
	go func() { done <- s.refresh(context.WithoutCancel(ctx), seen) }()
	timer := time.NewTimer(clientWait)
	defer timer.Stop()
	select {
	case err := <-done:
		if err != nil {
			return nil, err
		}
	case <-timer.C:
		return nil, errors.New("STS has not answered in time")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if current := s.held(); current.valid(time.Now()) {
		return current, nil
	}
	return nil, fmt.Errorf("STS answered with credentials that have expired: check the host's clock")
}

func (s *Source) held() *Credentials {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

func (s *Source) log(err error) logrus.FieldLogger {
	entry := s.config.Log.WithField("grant", s.config.Grant.Name).WithError(err)
	if assumeErr, ok := errors.AsType[*AssumeError](err); ok {
		entry = entry.WithField("hint", assumeErr.Hint())
	}
	return entry
}

// waitUntil waits for a time; false: ctx ended first.
func waitUntil(ctx context.Context, at time.Time) bool {
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
