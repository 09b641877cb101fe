package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"agentops/audit"
	"agentops/credsrv"
	"agentops/credsrv/grant"
	"agentops/helper"
	"agentops/runtime"

	"github.com/sirupsen/logrus"
)

// credentials are what a run's grants give it.
type credentials struct {
	grants []grant.AWS
	server *credsrv.Server
	events *deferredRecorder
}

// deferredRecorder keeps events until there is a journal for them: a run's first
// credentials are fetched before anything of it exists.
type deferredRecorder struct {
	mu      sync.Mutex
	kept    []audit.Event
	journal *audit.Journal
}

// Append implements the recorders of our packages.
func (d *deferredRecorder) Append(e audit.Event) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.journal == nil {
		d.kept = append(d.kept, e)
		return nil
	}
	return d.journal.Append(e)
}

// to hands the kept events to a journal, and from now on all others.
func (d *deferredRecorder) to(journal *audit.Journal) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.journal = journal
	for _, e := range d.kept {
		if err := journal.Append(e); err != nil {
			return err
		}
	}
	d.kept = nil
	return nil
}

// ownerFunc names the process that has made a connection; nil: not known.
type ownerFunc = func(source, destination netip.AddrPort) *audit.Process

// fetchCredentials gets the first credentials of every grant: a run that cannot
// have them does not start.
func (e *env) fetchCredentials(ctx context.Context, spec *runSpec, owner ownerFunc, log logrus.FieldLogger) (*credentials, error) {
	c := &credentials{grants: spec.roles, events: &deferredRecorder{}}
	sources := make([]*credsrv.Source, len(spec.roles))
	errs := make([]error, len(spec.roles))
	var wg sync.WaitGroup
	for i, g := range spec.roles {
		wg.Go(func() {
			sources[i], errs[i] = credsrv.NewSource(ctx, credsrv.SourceConfig{Grant: g, Run: spec.id, Recorder: c.events, Log: log})
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			return nil, grantHint(fmt.Errorf("grant %s: %w", spec.roles[i].Name, err))
		}
	}
	c.server = credsrv.NewServer(credsrv.ServerConfig{Sources: sources, Recorder: c.events, Log: log, Owner: owner})
	return c, nil
}

// helperName is that of the credential helper in runtime.Folder.
const helperName = "helper"

// environment returns what the run's programs need to use the credentials.
func (c *credentials) environment(server net.Addr, rootfs string) (env []string, files map[string]runtime.File) {
	env, contents := credsrv.Environment(credsrv.EnvironmentConfig{
		Grants: c.grants,
		Server: server.String(),
		Token:  c.server.Token(),
		Folder: runtime.Folder,
		Helper: runtime.Folder + "/" + helperName,
		Shell:  hasShell(rootfs),
	})
	// It is there without a grant as well, to say so.
	files = map[string]runtime.File{helperName: {Content: helper.Credential(), Mode: 0o555}}
	for path, content := range contents {
		files[path] = runtime.File{Content: content}
	}
	return env, files
}

// hasShell tells whether a view has /bin/sh. A link is looked at, not followed: it
// would lead out of the tree.
func hasShell(rootfs string) bool {
	for _, folder := range []string{"bin", "usr/bin"} {
		if _, err := os.Lstat(filepath.Join("/", rootfs, folder, "sh")); err == nil {
			return true
		}
	}
	return false
}
