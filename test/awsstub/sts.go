package awsstub

import (
	"crypto/rand"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

type assumeRoleResponse struct {
	XMLName     xml.Name `xml:"https://sts.amazonaws.com/doc/2011-06-15/ AssumeRoleResponse"`
	AccessKeyID string   `xml:"AssumeRoleResult>Credentials>AccessKeyId"`
	Secret      string   `xml:"AssumeRoleResult>Credentials>SecretAccessKey"`
	Token       string   `xml:"AssumeRoleResult>Credentials>SessionToken"`
	Expiration  string   `xml:"AssumeRoleResult>Credentials>Expiration"`
	RoleID      string   `xml:"AssumeRoleResult>AssumedRoleUser>AssumedRoleId"`
	ARN         string   `xml:"AssumeRoleResult>AssumedRoleUser>Arn"`
	RequestID   string   `xml:"ResponseMetadata>RequestId"`
}

type callerIdentityResponse struct {
	XMLName   xml.Name `xml:"https://sts.amazonaws.com/doc/2011-06-15/ GetCallerIdentityResponse"`
	ARN       string   `xml:"GetCallerIdentityResult>Arn"`
	UserID    string   `xml:"GetCallerIdentityResult>UserId"`
	Account   string   `xml:"GetCallerIdentityResult>Account"`
	RequestID string   `xml:"ResponseMetadata>RequestId"`
}

type stsError struct {
	XMLName   xml.Name `xml:"https://sts.amazonaws.com/doc/2011-06-15/ ErrorResponse"`
	Type      string   `xml:"Error>Type"`
	Code      string   `xml:"Error>Code"`
	Message   string   `xml:"Error>Message"`
	RequestID string   `xml:"RequestId"`
}

// sts answers the query protocol.
func (s *Stub) sts(w http.ResponseWriter, r *http.Request) {
	who, body, refusal := s.authenticate(r, "sts")
	if refusal == nil {
		form, err := url.ParseQuery(string(body))
		switch action := form.Get("Action"); {
		case err != nil:
			refusal = &apiError{http.StatusBadRequest, "MalformedQueryString", err.Error()}
		case action == "GetCallerIdentity":
			writeXML(w, http.StatusOK, callerIdentityResponse{ARN: who.arn, UserID: "AIDASTANDIN", Account: strings.Split(who.arn, ":")[4], RequestID: rand.Text()})
			return
		case action == "AssumeRole":
			var response *assumeRoleResponse
			if response, refusal = s.assumeRole(r, who, form); refusal == nil {
				writeXML(w, http.StatusOK, response)
				return
			}
		default:
			refusal = &apiError{http.StatusBadRequest, "InvalidAction", "there is no action " + action}
		}
	}
	writeXML(w, refusal.status, stsError{Type: "Sender", Code: refusal.code, Message: refusal.message, RequestID: rand.Text()})
}

func (s *Stub) assumeRole(r *http.Request, who identity, form url.Values) (*assumeRoleResponse, *apiError) {
	failure, end := s.begin()
	defer end()
	if failure.Block != nil {
		select {
		case <-failure.Block:
		case <-r.Context().Done():
		}
	}
	if failure.Code != "" {
		return nil, &apiError{max(failure.Status, http.StatusBadRequest), failure.Code, failure.Message}
	}
	arn := form.Get("RoleArn")
	i := slices.IndexFunc(s.config.Roles, func(role Role) bool { return role.ARN == arn })
	if i < 0 || s.config.Roles[i].ExternalID != "" && s.config.Roles[i].ExternalID != form.Get("ExternalId") {
		return nil, &apiError{http.StatusForbidden, "AccessDenied", fmt.Sprintf("User: %s is not authorized to perform: sts:AssumeRole on resource: %s", who.arn, arn)}
	}
	lifetime, refusal := duration(form, s.config.Roles[i], who)
	if refusal != nil {
		return nil, refusal
	}
	if s.config.Lifetime > 0 {
		lifetime = s.config.Lifetime
	}
	name := form.Get("RoleSessionName")
	if len(name) < 2 || len(name) > 64 {
		return nil, &apiError{http.StatusBadRequest, "ValidationError", "the session's name has 2 to 64 characters"}
	}
	parts := strings.Split(arn, ":")
	role := parts[5][strings.LastIndexByte(parts[5], '/')+1:]
	id := "ASIA" + rand.Text()[:16]
	granted := session{
		secret:     rand.Text() + rand.Text()[:14],
		token:      "FwoG" + rand.Text() + rand.Text(),
		arn:        fmt.Sprintf("arn:%s:sts::%s:assumed-role/%s/%s", parts[1], parts[4], role, name),
		expiration: time.Now().Add(lifetime),
	}
	s.mu.Lock()
	s.sessions[id] = granted
	s.mu.Unlock()
	return &assumeRoleResponse{
		AccessKeyID: id, Secret: granted.secret, Token: granted.token, ARN: granted.arn,
		Expiration: granted.expiration.UTC().Format(time.RFC3339Nano), RoleID: "AROASTANDIN:" + name, RequestID: rand.Text(),
	}, nil
}

// duration checks DurationSeconds as STS does.
func duration(form url.Values, role Role, who identity) (time.Duration, *apiError) {
	text := form.Get("DurationSeconds")
	if text == "" {
		return time.Hour, nil
	}
	seconds, err := strconv.Atoi(text)
	asked, most := time.Duration(seconds)*time.Second, role.MaxDuration
	if most == 0 {
		most = time.Hour
	}
	switch {
	case err != nil || asked < 15*time.Minute:
		return 0, &apiError{http.StatusBadRequest, "ValidationError", "DurationSeconds must have value greater than or equal to 900"}
	case who.chained && asked > time.Hour:
		return 0, &apiError{http.StatusBadRequest, "ValidationError", "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining."}
	case asked > most:
		return 0, &apiError{http.StatusBadRequest, "ValidationError", "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."}
	}
	return asked, nil
}

func writeXML(w http.ResponseWriter, status int, document any) {
	body, err := xml.Marshal(document)
	if err != nil {
		panic(err)
	}
	w.Header().Set("Content-Type", "text/xml")
	w.WriteHeader(status)
	_, _ = w.Write(append([]byte(xml.Header), body...)) // who asked may be gone
}
