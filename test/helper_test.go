package test

import (
	"bytes"
	"context"
	"debug/elf"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const helperPath = "../helper/dist/helper"

// The helper runs in any tree, with or without a libc, and does not make agent big.
func TestTheHelperIsStaticAndSmall(t *testing.T) {
	info, err := os.Stat(helperPath)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 6<<20 {
		t.Errorf("it has %d bytes", info.Size())
	}
	image, err := elf.Open(helperPath)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	for _, segment := range image.Progs {
		if segment.Type == elf.PT_INTERP || segment.Type == elf.PT_DYNAMIC {
			t.Errorf("it has a segment %s", segment.Type)
		}
	}
}

// SDKs wait for a credential_process without end, so the helper does not.
func TestTheHelperGivesUp(t *testing.T) {
	silent, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("token"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var stderr bytes.Buffer
	helper := exec.CommandContext(ctx, helperPath, "credential", "aws")
	helper.Env = []string{"AGENTOPS_CREDENTIAL_URL=http://" + silent.Addr().String(), "AGENTOPS_CREDENTIAL_TOKEN_FILE=" + token}
	helper.Stderr = &stderr
	if err := helper.Run(); helper.ProcessState.ExitCode() != 1 || !strings.Contains(stderr.String(), "has not answered in 4s") {
		t.Errorf("%v: %s", err, &stderr)
	}
}
