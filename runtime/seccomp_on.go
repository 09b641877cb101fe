//go:build seccomp

package runtime

// hasSeccomp: libcontainer was built with libseccomp.
const hasSeccomp = true
