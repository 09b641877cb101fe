package runtime

import (
	"strings"
	"testing"
)

// What is refused, is refused at once and with the errno that says so; what a
// run needs, works.
func TestSeccomp(t *testing.T) {
	const script = `
import ctypes, errno, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    ctypes.set_errno(0)
    result = libc.syscall(number, *[ctypes.c_long(a) for a in args])
    return "ok" if result >= 0 else errno.errorcode[ctypes.get_errno()]
SOCKET = 41
for family in range(0, 60):
    verdict = call(SOCKET, family, 1 if family != 16 else 3, 0)
    want = "ok" if family in (1, 2, 10, 16) else "EAFNOSUPPORT"
    if verdict != want: print("family", family, verdict)
print("large", call(SOCKET, (1 << 32) + 40, 1, 0))
print("audit", call(SOCKET, 16, 3, 9), "diag", call(SOCKET, 16, 3, 4))
print("x32", call(SOCKET + (1 << 30), 40, 1, 0) != "ok")
for name, number in dict(io_uring_setup=425, bpf=321, perf_event_open=298, userfaultfd=323, add_key=248, keyctl=250, kexec_load=246, init_module=175, open_by_handle_at=304).items():
    print(name, call(number, 0, 0, 0, 0, 0))
`
	status, out := runConfig(t, newConfig(t, "/usr/bin/python3", "-c", script))
	if status.Code != 0 {
		t.Errorf("status %+v\n%s", status, out)
	}
	for _, want := range []string{"large EAFNOSUPPORT", "audit EAFNOSUPPORT diag EAFNOSUPPORT", "x32 True",
		"io_uring_setup EPERM", "bpf EPERM", "perf_event_open EPERM", "userfaultfd EPERM", "add_key EPERM", "keyctl EPERM",
		"kexec_load EPERM", "init_module EPERM", "open_by_handle_at EPERM"} {
		if !strings.Contains(out, want+"\n") {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	if strings.Contains(out, "family") {
		t.Errorf("families:\n%s", out)
	}
}
