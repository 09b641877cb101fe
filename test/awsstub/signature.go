package awsstub

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const (
	maxBody = 64 << 20 // bytes, of a request
	maxSkew = 15 * time.Minute
)

// session is what AssumeRole gave.
type session struct {
	secret, token string
	who           identity
	expiration    time.Time
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

// authenticate checks a request's signature (version 4, in the header) as AWS
// does: by signing it again with the secret of the key it names.
func (s *Stub) authenticate(r *http.Request, service string) (identity, []byte, *apiError) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		return identity{}, nil, &apiError{http.StatusBadRequest, "IncompleteBody", "the body is cut off"}
	}
	fields := authorization(r.Header.Get("Authorization"))
	scope := strings.Split(fields["Credential"], "/")
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if len(scope) != 5 || scope[3] != service || scope[4] != "aws4_request" || err != nil {
		return identity{}, nil, &apiError{http.StatusForbidden, "MissingAuthenticationToken", "the request is not signed for " + service}
	}
	who, credentials, refusal := s.credentials(scope[0], r.Header.Get("X-Amz-Security-Token"))
	if refusal != nil {
		return identity{}, nil, refusal
	}
	if skew := s.config.Now().Sub(at); skew > maxSkew || skew < -maxSkew {
		return identity{}, nil, &apiError{http.StatusForbidden, "SignatureDoesNotMatch", "the clock is off by " + skew.String()}
	}
	hash := r.Header.Get("X-Amz-Content-Sha256")
	if sum := sha256.Sum256(body); hash == "" || len(hash) == 2*sha256.Size {
		hash = hex.EncodeToString(sum[:]) // of what has really come
	}
	again := r.Clone(r.Context())
	again.URL.Scheme, again.URL.Host = "https", r.Host
	again.Header = make(http.Header)
	for name := range strings.SplitSeq(fields["SignedHeaders"], ";") {
		if values := r.Header.Values(name); len(values) > 0 {
			again.Header[http.CanonicalHeaderKey(name)] = values
		}
	}
	again.ContentLength = 0 // else it would be signed by itself
	if slices.Contains(strings.Split(fields["SignedHeaders"], ";"), "content-length") {
		again.ContentLength = r.ContentLength
	}
	err = v4.NewSigner().SignHTTP(r.Context(), credentials, again, hash, service, scope[2], at, func(o *v4.SignerOptions) {
		o.DisableURIPathEscaping = service == "s3"
		o.DisableHeaderHoisting = true
	})
	signature := authorization(again.Header.Get("Authorization"))["Signature"]
	if err != nil || signature == "" || subtle.ConstantTimeCompare([]byte(signature), []byte(fields["Signature"])) != 1 {
		return identity{}, nil, &apiError{http.StatusForbidden, "SignatureDoesNotMatch", "the signature is not that of the secret access key"}
	}
	return who, body, nil
}

// credentials finds the secret of an access key.
func (s *Stub) credentials(id, token string) (identity, aws.Credentials, *apiError) {
	var found session
	ok := false
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

// authorization reads "AWS4-HMAC-SHA256 Credential=..., SignedHeaders=..., ...".
func authorization(header string) map[string]string {
	fields := make(map[string]string)
	rest, ok := strings.CutPrefix(header, "AWS4-HMAC-SHA256 ")
	if !ok {
		return fields
	}
	for field := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		fields[name] = value
	}
	return fields
}
