//go:build !seccomp

package runtime

// hasSeccomp: without the build tag, libcontainer cannot install a filter, and no
// run is started without one.
const hasSeccomp = false
