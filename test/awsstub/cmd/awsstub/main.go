// Command awsstub runs the stand-in for AWS until its stdin ends or it is told
// to. When it is ready it prints one line of JSON on stdout: where it listens,
// and the access key of its one user.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"agentops/test/awsstub"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "awsstub:", err)
		os.Exit(1)
	}
}

func run() error {
	ca := flag.String("ca", "", "write the authority's certificate to `FILE`")
	flag.Parse()
	user := awsstub.User{
		AccessKeyID:     "AKIASTANDINEXAMPLE00",
		SecretAccessKey: "stand-in/secret/of/the/host/00000000000",
		ARN:             "arn:aws:iam::123456789012:user/host",
	}
	stub, err := awsstub.New(awsstub.Config{
		Users: []awsstub.User{user},
		Roles: []awsstub.Role{{ARN: "arn:aws:iam::123456789012:role/AgentRole"}},
		Buckets: map[string]map[string][]byte{
			"demo-logs":    {"2026/11/23.log": []byte("all is well\n")},
			"demo-reports": {"summary.txt": []byte("nothing to report\n")},
		},
	})
	if err != nil {
		return err
	}
	if *ca != "" {
		if err := os.WriteFile(*ca, stub.CA(), 0o600); err != nil {
			return err
		}
	}
	err = json.NewEncoder(os.Stdout).Encode(map[string]string{
		"tls": stub.TLSAddr(), "url": stub.URL(), "access_key_id": user.AccessKeyID, "secret_access_key": user.SecretAccessKey,
	})
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	select {
	case <-signals:
	case <-ended:
	}
	return stub.Close()
}
