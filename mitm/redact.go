package mitm

import (
	"net/url"
	"strings"
)

// maxRecorded bounds what is recorded of one URL, in bytes.
const maxRecorded = 8 << 10

// secretParameters are query parameters that are, or carry, a secret: presigned
// requests of the clouds, OAuth, and what interfaces commonly call their keys.
var secretParameters = map[string]bool{
	"x-amz-signature": true, "x-amz-security-token": true, "x-amz-credential": true,
	"x-goog-signature": true, "x-goog-credential": true,
	"signature": true, "sig": true, "awsaccesskeyid": true,
	"access_token": true, "refresh_token": true, "id_token": true, "token": true, "auth": true, "code": true,
	"client_secret": true, "secret": true, "password": true, "passwd": true,
	"api_key": true, "apikey": true, "api-key": true, "key": true,
}

// redactURL replaces the values of secret query parameters. The rest stays as it
// was written.
func redactURL(text string) string {
	head, query, found := strings.Cut(text, "?")
	if !found {
		return clip(head, maxRecorded)
	}
	parameters := strings.Split(query, "&")
	for i, parameter := range parameters {
		name, _, hasValue := strings.Cut(parameter, "=")
		decoded, err := url.QueryUnescape(name)
		if err != nil {
			decoded = name
		}
		if hasValue && secretParameters[strings.ToLower(decoded)] {
			parameters[i] = name + "=[redacted]"
		}
	}
	return clip(head+"?"+strings.Join(parameters, "&"), maxRecorded)
}

// clip cuts a text that is longer than is recorded.
func clip(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return text[:most] + "…"
}
