package awsstub

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const (
	maxBody   = 64 << 20 // bytes, of a request
	maxSkew   = 15 * time.Minute
	algorithm = "AWS4-HMAC-SHA256"
	amzDate   = "20060102T150405Z"
)

// session is what AssumeRole gave, or a user.
type session struct {
	secret, token string
	who           identity
	expiration    time.Time // zero: none
}

// identity is who signed a request.
type identity struct {
	arn     string
	userID  string
	chained bool // itself a session of a role
}

// apiError is an answer of AWS's that refuses.
type apiError struct {
	status        int
	code, message string
}

// claim is what a request says of its signature, in the Authorization header or,
// presigned, in the query.
type claim struct {
	scope     []string // key, day, region, service, "aws4_request"
	headers   []string // that are signed, in lower case
	signature string
	date      string
	token     string
	presigned bool
	expires   string // seconds; of the presigned, which may leave it to the service
}

// signed reads a request's claim; its scope is empty where there is none.
func signed(r *http.Request) claim {
	if query := r.URL.Query(); query.Get("X-Amz-Algorithm") == algorithm {
		return claim{
			scope: strings.Split(query.Get("X-Amz-Credential"), "/"), headers: strings.Split(query.Get("X-Amz-SignedHeaders"), ";"),
			signature: query.Get("X-Amz-Signature"), date: query.Get("X-Amz-Date"), token: query.Get("X-Amz-Security-Token"),
			presigned: true, expires: query.Get("X-Amz-Expires"),
		}
	}
	rest, ok := strings.CutPrefix(r.Header.Get("Authorization"), algorithm+" ")
	if !ok {
		return claim{}
	}
	fields := make(map[string]string)
	for field := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		fields[name] = value
	}
	return claim{
		scope: strings.Split(fields["Credential"], "/"), headers: strings.Split(fields["SignedHeaders"], ";"),
		signature: fields["Signature"], date: r.Header.Get("X-Amz-Date"), token: r.Header.Get("X-Amz-Security-Token"),
	}
}

// authenticate checks a request's signature (version 4) as AWS does, by signing it
// again with the secret of the key it names, and returns who signed it and its body.
func (s *Stub) authenticate(r *http.Request, service string) (identity, []byte, *apiError) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return identity{}, nil, &apiError{http.StatusBadRequest, "IncompleteBody", "the body is cut off"}
	}
	if len(body) > maxBody {
		return identity{}, nil, &apiError{http.StatusBadRequest, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size"}
	}
	c := signed(r)
	at, err := time.Parse(amzDate, c.date)
	if len(c.scope) != 5 || c.scope[3] != service || c.scope[4] != "aws4_request" || err != nil {
		return identity{}, nil, &apiError{http.StatusForbidden, "MissingAuthenticationToken", "Request is missing Authentication Token"}
	}
	who, credentials, refusal := s.credentials(c.scope[0], c.token)
	if refusal != nil {
		return identity{}, nil, refusal
	}
	if refusal := c.timely(at, s.config.Now()); refusal != nil {
		return identity{}, nil, refusal
	}
	hash, refusal := payloadHash(r, c, service, body)
	if refusal != nil {
		return identity{}, nil, refusal
	}
	signature, err := c.again(r, credentials, hash, at)
	if err != nil || signature == "" || subtle.ConstantTimeCompare([]byte(signature), []byte(c.signature)) != 1 {
		return identity{}, nil, &apiError{http.StatusForbidden, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details."}
	}
	return who, body, nil
}

// timely refuses what was signed too long ago, or too far ahead.
func (c claim) timely(at, now time.Time) *apiError {
	most := maxSkew
	if c.presigned && c.expires != "" {
		seconds, err := strconv.Atoi(c.expires)
		if err != nil || seconds < 0 || seconds > 7*24*60*60 {
			return &apiError{http.StatusBadRequest, "AuthorizationQueryParametersError", "X-Amz-Expires must be a number of seconds of at most a week"}
		}
		most = time.Duration(seconds) * time.Second
		if now.Sub(at) > most {
			return &apiError{http.StatusForbidden, "AccessDenied", "Request has expired"}
		}
	}
	if age := now.Sub(at); age > most || age < -maxSkew {
		return &apiError{http.StatusForbidden, "RequestTimeTooSkewed", fmt.Sprintf("Signature expired or not yet current: %s is %s from %s", c.date, age, now.UTC().Format(amzDate))}
	}
	return nil
}

// payloadHash is what the signature is to hold in place of the body.
func payloadHash(r *http.Request, c claim, service string, body []byte) (string, *apiError) {
	sum := sha256.Sum256(body)
	come := hex.EncodeToString(sum[:])
	told := r.Header.Get("X-Amz-Content-Sha256")
	switch {
	case service != "s3":
		return come, nil
	case c.presigned && told == "":
		return "UNSIGNED-PAYLOAD", nil
	case told == "UNSIGNED-PAYLOAD", strings.HasPrefix(told, "STREAMING-"), told == come:
		return told, nil
	case told == "":
		return "", &apiError{http.StatusBadRequest, "InvalidRequest", "Missing required header for this request: x-amz-content-sha256"}
	}
	return "", &apiError{http.StatusBadRequest, "XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match what was computed."}
}

// again signs the request as its client said to have done.
func (c claim) again(r *http.Request, credentials aws.Credentials, hash string, at time.Time) (string, error) {
	region, service := c.scope[2], c.scope[3]
	options := func(o *v4.SignerOptions) {
		o.DisableURIPathEscaping = service == "s3"
		o.DisableHeaderHoisting = true
	}
	again := r.Clone(r.Context())
	again.URL.Scheme, again.URL.Host = "https", r.Host
	again.Header = make(http.Header)
	for _, name := range c.headers {
		if values := r.Header.Values(name); len(values) > 0 {
			again.Header[http.CanonicalHeaderKey(name)] = slices.Clone(values) // the signer writes to them
		}
	}
	if !slices.Contains(c.headers, "content-length") {
		again.ContentLength = 0 // else it would be signed by itself
	}
	if !c.presigned {
		if err := v4.NewSigner().SignHTTP(r.Context(), credentials, again, hash, service, region, at, options); err != nil {
			return "", err
		}
		return signed(again).signature, nil
	}
	query := again.URL.Query()
	query.Del("X-Amz-Signature")
	again.URL.RawQuery = query.Encode()
	signedURL, _, err := v4.NewSigner().PresignHTTP(r.Context(), credentials, again, hash, service, region, at, options)
	if err != nil {
		return "", err
	}
	parsed, err := url.Parse(signedURL)
	if err != nil {
		return "", err
	}
	return parsed.Query().Get("X-Amz-Signature"), nil
}

// credentials finds the secret of an access key.
func (s *Stub) credentials(id, token string) (identity, aws.Credentials, *apiError) {
	var found session
	var ok bool
	if i := slices.IndexFunc(s.config.Users, func(u User) bool { return u.AccessKeyID == id }); i >= 0 {
		user := s.config.Users[i]
		found, ok = session{secret: user.SecretAccessKey, token: user.SessionToken, who: user.identity()}, true
	} else {
		s.mu.Lock()
		found, ok = s.sessions[id]
		s.mu.Unlock()
	}
	switch {
	case !ok || token != found.token:
		return identity{}, aws.Credentials{}, &apiError{http.StatusForbidden, "InvalidClientTokenId", "The security token included in the request is invalid."}
	case !found.expiration.IsZero() && !s.config.Now().Before(found.expiration):
		return identity{}, aws.Credentials{}, &apiError{http.StatusForbidden, "ExpiredToken", "The security token included in the request is expired"}
	}
	return found.who, aws.Credentials{AccessKeyID: id, SecretAccessKey: found.secret, SessionToken: token}, nil
}
