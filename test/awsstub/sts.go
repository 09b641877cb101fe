package awsstub

import (
	"cmp"
	"crypto/rand"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
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
	if refusal != nil && refusal.code == "RequestTimeTooSkewed" {
		refusal.code = "SignatureDoesNotMatch" // as STS has it
	}
	if refusal == nil {
		if r.Method == http.MethodGet { // the presigned
			body = []byte(r.URL.RawQuery)
		}
		form, err := url.ParseQuery(string(body))
		switch action := form.Get("Action"); {
		case err != nil:
			refusal = &apiError{http.StatusBadRequest, "MalformedQueryString", err.Error()}
		case action == "GetCallerIdentity":
			writeXML(w, http.StatusOK, callerIdentityResponse{ARN: who.arn, UserID: who.userID, Account: strings.Split(who.arn, ":")[4], RequestID: rand.Text()})
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

var sessionName = regexp.MustCompile(`^[\w+=,.@-]*$`)

func (s *Stub) assumeRole(r *http.Request, who identity, form url.Values) (*assumeRoleResponse, *apiError) {
	failure, end := s.begin()
	defer end()
	failure.wait(r.Context())
	if refusal := failure.refusal(); refusal != nil {
		return nil, refusal
	}
	asked, refusal := check(form)
	if refusal != nil {
		return nil, refusal
	}
	role, name := form.Get("RoleArn"), form.Get("RoleSessionName")
	i := slices.IndexFunc(s.config.Roles, func(known Role) bool { return known.ARN == role })
	if i < 0 || !s.config.Roles[i].trusts(who, form.Get("ExternalId")) {
		return nil, &apiError{http.StatusForbidden, "AccessDenied", fmt.Sprintf("User: %s is not authorized to perform: sts:AssumeRole on resource: %s", who.arn, role)}
	}
	switch most := cmp.Or(s.config.Roles[i].MaxDuration, time.Hour); {
	case who.chained && asked > time.Hour:
		return nil, invalid("The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining.")
	case asked > most:
		return nil, invalid("The requested DurationSeconds exceeds the MaxSessionDuration set for this role.")
	}
	expiration := s.config.Now().Add(asked).Truncate(time.Second) // as STS
	if s.config.Lifetime > 0 {
		expiration = s.config.Now().Add(s.config.Lifetime)
	}
	parts := strings.Split(role, ":")
	id := "ASIA" + rand.Text()[:16]
	granted := session{
		secret: rand.Text() + rand.Text()[:14],
		token:  "FwoG" + rand.Text() + rand.Text(),
		who: identity{
			arn:     fmt.Sprintf("arn:%s:sts::%s:assumed-role/%s/%s", parts[1], parts[4], role[strings.LastIndexByte(role, '/')+1:], name),
			userID:  "AROASTANDIN:" + name,
			chained: true,
		},
		expiration: expiration,
	}
	s.mu.Lock()
	s.sessions[id] = granted
	s.mu.Unlock()
	return &assumeRoleResponse{
		AccessKeyID: id, Secret: granted.secret, Token: granted.token, ARN: granted.who.arn,
		Expiration: expiration.UTC().Format(time.RFC3339Nano), RoleID: granted.who.userID, RequestID: rand.Text(),
	}, nil
}

// trusts is what the role's trust policy says.
func (r Role) trusts(who identity, externalID string) bool {
	return (r.ExternalID == "" || r.ExternalID == externalID) && (len(r.TrustedBy) == 0 || slices.Contains(r.TrustedBy, who.arn))
}

// check looks at the parameters as STS does before it looks at the role, and
// returns DurationSeconds.
func check(form url.Values) (time.Duration, *apiError) {
	constraint := func(name, says string) *apiError {
		return invalid(fmt.Sprintf("1 validation error detected: Value '%s' at '%s' failed to satisfy constraint: Member must %s", form.Get(name), strings.ToLower(name[:1])+name[1:], says))
	}
	text := form.Get("DurationSeconds")
	if text == "" {
		text = "3600"
	}
	seconds, err := strconv.Atoi(text)
	name := form.Get("RoleSessionName")
	switch {
	case len(form.Get("RoleArn")) < 20:
		return 0, constraint("RoleArn", "have length greater than or equal to 20")
	case len(name) < 2:
		return 0, constraint("RoleSessionName", "have length greater than or equal to 2")
	case len(name) > 64:
		return 0, constraint("RoleSessionName", "have length less than or equal to 64")
	case !sessionName.MatchString(name):
		return 0, constraint("RoleSessionName", `satisfy regular expression pattern: [\w+=,.@-]*`)
	case err != nil || seconds < 900:
		return 0, constraint("DurationSeconds", "have value greater than or equal to 900")
	case seconds > 43200:
		return 0, constraint("DurationSeconds", "have value less than or equal to 43200")
	}
	return time.Duration(seconds) * time.Second, nil
}

func invalid(message string) *apiError {
	return &apiError{http.StatusBadRequest, "ValidationError", message}
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
