package credsrv

import (
	"fmt"
	"strings"

	"agentops/credsrv/grant"
)

// EnvironmentConfig says where in a run things are.
type EnvironmentConfig struct {
	Grants []grant.AWS // the first is also the default profile
	Server string      // ADDRESS:PORT of the credential server
	Token  Secret
	Folder string // the run's read-only folder, in which Helper and the files are
	Helper string // the path of the helper; must have no spaces
	// Shell is whether there is a /bin/sh: most SDKs start a credential process
	// by it. Without one the container endpoint is configured instead.
	Shell bool
}

// tokenFile is the token's file below the run's folder.
const tokenFile = "token"

// Environment returns the variables, NAME=VALUE, and the files, by path below the
// folder, that make the AWS SDKs in a run use its grants.
func Environment(c EnvironmentConfig) (env []string, files map[string][]byte) {
	files = map[string][]byte{tokenFile: []byte(c.Token)}
	if len(c.Grants) == 0 {
		return nil, nil
	}
	var config, credentials strings.Builder
	profile := func(name string, g grant.AWS) {
		section := "profile " + name
		if name == "default" { // no grant can have the name
			section = name
		}
		fmt.Fprintf(&config, "[%s]\nregion = %s\n", section, g.Region)
		if c.Shell {
			process := fmt.Sprintf("credential_process = %s credential %s\n", c.Helper, g.Name)
			config.WriteString(process)
			fmt.Fprintf(&credentials, "[%s]\n%s\n", name, process)
		}
		config.WriteString("\n")
	}
	profile("default", c.Grants[0])
	for _, g := range c.Grants {
		profile(g.Name, g)
	}
	files["aws/config"] = []byte(config.String())
	files["aws/credentials"] = []byte(credentials.String())

	url := "http://" + c.Server
	first := c.Grants[0]
	env = []string{
		"AWS_CONFIG_FILE=" + c.Folder + "/aws/config",
		"AWS_SHARED_CREDENTIALS_FILE=" + c.Folder + "/aws/credentials",
		"AWS_REGION=" + first.Region,
		"AWS_DEFAULT_REGION=" + first.Region,
		"AWS_SDK_LOAD_CONFIG=1",
		"AWS_EC2_METADATA_DISABLED=true",
		"AWS_PAGER=",
		"AGENTOPS_CREDENTIAL_URL=" + url,
		"AGENTOPS_CREDENTIAL_TOKEN_FILE=" + c.Folder + "/" + tokenFile,
	}
	if !c.Shell {
		env = append(env,
			"AWS_CONTAINER_CREDENTIALS_FULL_URI="+url+"/v1/container/"+first.Name,
			"AWS_CONTAINER_AUTHORIZATION_TOKEN="+string(c.Token),
		)
	}
	return env, files
}
