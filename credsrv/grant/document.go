package grant

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// documentVersion is raised when older programs would read a grant wrongly.
const documentVersion = 1

// document is a grant as it is stored and printed.
type document struct {
	Version         int               `json:"version"`
	Kind            string            `json:"kind"` // "aws"
	Name            string            `json:"name"`
	RoleARN         string            `json:"role_arn"`
	Region          string            `json:"region"`
	DurationSeconds int64             `json:"session_duration_seconds"`
	ExternalID      string            `json:"external_id,omitempty"`
	Profile         string            `json:"aws_profile,omitempty"`
	SessionPolicy   string            `json:"session_policy,omitempty"`
	PolicyARNs      []string          `json:"policy_arns,omitempty"`
	Verified        *verifiedDocument `json:"verified"` // null: it was never tried
}

type verifiedDocument struct {
	Caller      string    `json:"caller"`
	AssumedRole string    `json:"assumed_role"`
	Chained     bool      `json:"chained"`
	At          time.Time `json:"at"`
}

const kindAWS = "aws"

// MarshalJSON implements json.Marshaler, in the form of the stored files.
func (a AWS) MarshalJSON() ([]byte, error) {
	d := document{
		Version:         documentVersion,
		Kind:            kindAWS,
		Name:            a.Name,
		RoleARN:         a.RoleARN,
		Region:          a.Region,
		DurationSeconds: int64(a.SessionDuration / time.Second),
		ExternalID:      a.ExternalID,
		Profile:         a.Profile,
		SessionPolicy:   a.SessionPolicy,
		PolicyARNs:      a.PolicyARNs,
	}
	if v := a.Verified; v != nil {
		at := v.At.UTC().Truncate(time.Second)
		d.Verified = &verifiedDocument{Caller: v.Caller, AssumedRole: v.AssumedRole, Chained: v.Chained, At: at}
	}
	return json.Marshal(d)
}

// UnmarshalJSON implements json.Unmarshaler. Nothing unknown is passed over: it
// may be what narrows the grant. The result is not checked.
func (a *AWS) UnmarshalJSON(content []byte) error {
	var head struct {
		Version int    `json:"version"`
		Kind    string `json:"kind"`
	}
	if err := json.Unmarshal(content, &head); err != nil {
		return err
	}
	if head.Version != documentVersion {
		return fmt.Errorf("it is of version %d, this agent reads version %d", head.Version, documentVersion)
	}
	if head.Kind != kindAWS {
		return fmt.Errorf("it is of kind %q, this agent reads kind %q", head.Kind, kindAWS)
	}
	var d document
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&d); err != nil {
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something after its end")
	}
	// Beyond this a Duration would wrap around, into the range even.
	if d.DurationSeconds < 0 || d.DurationSeconds > int64(MaxDuration/time.Second) {
		return fmt.Errorf("its session duration of %d s is out of range", d.DurationSeconds)
	}
	*a = AWS{
		Name:            d.Name,
		RoleARN:         d.RoleARN,
		Region:          d.Region,
		SessionDuration: time.Duration(d.DurationSeconds) * time.Second,
		ExternalID:      d.ExternalID,
		Profile:         d.Profile,
		SessionPolicy:   d.SessionPolicy,
		PolicyARNs:      d.PolicyARNs,
	}
	if v := d.Verified; v != nil {
		a.Verified = &Verified{Caller: v.Caller, AssumedRole: v.AssumedRole, Chained: v.Chained, At: v.At}
	}
	return nil
}
