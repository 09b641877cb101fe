package runtime

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The home folder of a run's command.
const home = "/root"

// What a command's PATH is when the host's does not apply or is not set.
const standardPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// trustVariables name the bundle of trusted CAs to programs that bring their
// own, by who reads them.
var trustVariables = []string{
	"SSL_CERT_FILE",                      // OpenSSL, Go, Ruby, Rust's native-certs
	"NIX_SSL_CERT_FILE",                  // programs from Nix
	"CURL_CA_BUNDLE",                     // curl
	"GIT_SSL_CAINFO",                     // git
	"REQUESTS_CA_BUNDLE",                 // Python's requests
	"PIP_CERT",                           // pip
	"AWS_CA_BUNDLE",                      // AWS SDKs and CLI
	"NODE_EXTRA_CA_CERTS",                // Node.js
	"DENO_CERT",                          // Deno
	"CARGO_HTTP_CAINFO",                  // Cargo
	"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",   // gRPC's C core
	"CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE", // gcloud
	"HEX_CACERTS_PATH",                   // Elixir's Hex
	"BUNDLE_SSL_CA_CERT",                 // Ruby's Bundler
	"npm_config_cafile",                  // npm
}

// keptVariables are those of the host's that describe the user's terminal and
// language, not the host.
var keptVariables = []string{"LANG", "LANGUAGE", "TERM", "COLORTERM", "NO_COLOR", "TZ"}

// refusedVariables would bring an AWS identity into a run other than by a grant.
var refusedVariables = []string{
	"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN",
	"AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE",
}

// TrustEnv is the variables, NAME=VALUE, that make a run's programs trust the
// bundle at BundlePath.
func TrustEnv() []string {
	env := make([]string, len(trustVariables))
	for i, name := range trustVariables {
		env[i] = name + "=" + BundlePath
	}
	return env
}

// Environ computes a command's whole environment, sorted. Of the host's it
// keeps only what says nothing about the host's secrets. own is what the run's
// grants need; given is the user's, NAME=VALUE or NAME for the host's value, and
// wins over everything else. A given variable that carries an AWS identity is
// an error. rootfs is that of the Config.
func Environ(host []string, rootfs string, own, given []string) ([]string, error) {
	outside := variables(host)
	env := map[string]string{"HOME": home, "USER": "root", "LOGNAME": "root", "PATH": standardPath}
	for name, value := range outside {
		if slices.Contains(keptVariables, name) || strings.HasPrefix(name, "LC_") {
			env[name] = value
		}
	}
	if rootfs == "" {
		// Where the host's programs are, and its shell, apply in its own view only.
		for _, name := range []string{"PATH", "SHELL"} {
			if value := outside[name]; value != "" {
				env[name] = value
			}
		}
	}
	maps.Copy(env, variables(TrustEnv()))
	maps.Copy(env, variables(own))
	for _, entry := range given {
		name, value, set := strings.Cut(entry, "=")
		if name == "" || strings.ContainsRune(entry, 0) {
			return nil, fmt.Errorf("environment variable %q: it has no name or holds a NUL", entry)
		}
		if slices.Contains(refusedVariables, name) {
			return nil, fmt.Errorf("environment variable %s: it would bring an AWS identity into the run, which only a grant may", name)
		}
		if !set {
			if value, set = outside[name]; !set {
				continue // as env and docker do
			}
		}
		env[name] = value
	}
	list := make([]string, 0, len(env))
	for name, value := range env {
		list = append(list, name+"="+value)
	}
	slices.Sort(list)
	return list, nil
}

func variables(env []string) map[string]string {
	m := make(map[string]string, len(env))
	for _, entry := range env {
		if name, value, ok := strings.Cut(entry, "="); ok {
			m[name] = value
		}
	}
	return m
}
