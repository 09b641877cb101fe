// Package credsrv gives the programs of a run short-lived AWS credentials: it
// assumes the roles of the run's grants with the host's identity, renews them in
// time, and serves them on the run's loopback.
package credsrv

import (
	"time"

	"agentops/credsrv/grant"
)

// Secret is a text that does not show itself.
type Secret = grant.Secret

// Credentials are those of one session of a role.
type Credentials struct {
	AccessKeyID     string // names the session, is no secret
	SecretAccessKey Secret
	SessionToken    Secret
	Obtained        time.Time
	Expiration      time.Time
}

// valid reports whether they can still be used.
func (c *Credentials) valid(now time.Time) bool {
	return c != nil && now.Before(c.Expiration)
}

// renewAt is when they should be renewed: at half of a session under an hour,
// else when 20 minutes remain. share, from 0 to 1, moves it forward by up to a
// tenth of the session, so that runs that began together part.
func (c *Credentials) renewAt(share float64) time.Time {
	life := c.Expiration.Sub(c.Obtained)
	at := c.Obtained.Add(life / 2)
	if life >= time.Hour {
		at = c.Expiration.Add(-20 * time.Minute)
	}
	return at.Add(-time.Duration(share * float64(life) / 10))
}

// reported is the expiration that clients are told: a minute early, for those
// that renew only then, but never in the past.
func (c *Credentials) reported(now time.Time) time.Time {
	early := min(time.Minute, c.Expiration.Sub(now)/2)
	return c.Expiration.Add(-early).UTC().Truncate(time.Second)
}
