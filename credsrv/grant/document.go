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

// parse reads a stored grant of any kind. It is not checked.
func parse(content []byte) (Grant, error) {
	var head head
	if err := json.Unmarshal(content, &head); err != nil {
		return nil, err
	}
	switch {
	case head.Version != documentVersion:
		return nil, fmt.Errorf("it is of version %d, this agent reads version %d", head.Version, documentVersion)
	case head.Kind == kindAWS:
		return parseAWS(content)
	case head.Kind == kindHTTP:
		return parseHTTP(content)
	}
	return nil, fmt.Errorf("it is of kind %q, this agent reads kinds %q and %q", head.Kind, kindAWS, kindHTTP)
}

// head is what the documents of all kinds have.
type head struct {
	Version int    `json:"version"`
	Kind    string `json:"kind"`
}

// decode reads one document. Nothing unknown is passed over: it may be what
// narrows the grant.
func decode(content []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something after its end")
	}
	return nil
}

// document is an AWS grant as it is stored and printed.
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
func (a AWS) MarshalJSON() ([]byte, error) { return json.Marshal(a.stored()) }

func (a AWS) stored() any {
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
	return d
}

func parseAWS(content []byte) (a AWS, err error) {
	var d document
	if err := decode(content, &d); err != nil {
		return a, err
	}
	// Beyond this a Duration would wrap around, into the range even.
	if d.DurationSeconds < 0 || d.DurationSeconds > int64(MaxDuration/time.Second) {
		return a, fmt.Errorf("its session duration of %d s is out of range", d.DurationSeconds)
	}
	a = AWS{
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
	return a, nil
}
