package main

import (
	"os"
	"path/filepath"

	"agentops/test/awsstub"
)

const role = "arn:aws:iam::123456789012:role/AgentRole"

// credential measures the helper while the session at hand is valid.
func (b *bench) credential() (*Results, error) {
	user := awsstub.User{
		AccessKeyID: "AKIASTANDINEXAMPLE00", SecretAccessKey: "stand-in/secret/of/the/host/00000000000",
		ARN: "arn:aws:iam::123456789012:user/host",
	}
	stub, err := awsstub.New(awsstub.Config{Users: []awsstub.User{user}, Roles: []awsstub.Role{{ARN: role}}})
	if err != nil {
		return nil, err
	}
	b.undo = append(b.undo, stub.Close)
	ca := filepath.Join(b.folder, "aws.pem")
	if err := os.WriteFile(ca, stub.CA(), 0o600); err != nil {
		return nil, err
	}
	identity := []string{"AWS_ACCESS_KEY_ID=" + user.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + user.SecretAccessKey, "AWS_ENDPOINT_URL_STS=" + stub.URL()}
	store := b.command(b.agent, "grant", "aws", "--role", role)
	store.Env = append(store.Env, identity...)
	if _, err := b.output(store); err != nil {
		return nil, err
	}
	series, err := alternate(b.rounds(5), contender{"agent", func() ([]float64, error) {
		cmd := b.command(b.agent, "run", "--quiet", "--grant", "aws", "--upstream-ca", ca, "--resolve", "*="+stub.TLSAddr(),
			"--", b.self, "client", "credential", "aws", "100")
		cmd.Env = append(cmd.Env, identity...)
		out, err := b.output(cmd)
		if err != nil {
			return nil, err
		}
		return readNumbers(out)
	}})
	if err != nil {
		return nil, err
	}
	return &Results{Figures: []Figure{
		{Name: "credential helper, warm, start to exit", Unit: "ms", Ours: series[0][0], Target: valueOfAtMost(3)},
		{Name: "of that, connecting and asking the server", Unit: "ms", Ours: series[0][1], Target: valueOfAtMost(1)},
	}}, nil
}
