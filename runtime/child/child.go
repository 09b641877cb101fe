// Package child sets a container up in its first process, which is the program that
// creates containers, started again.
//
// It does so in an init function, and imports little but libcontainer. Go initializes
// a package as soon as those that it imports are, in the order of their paths: of what
// the rest of a large program has to prepare, for which a container's start would
// wait, most is not even begun.
package child

import (
	"os"

	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // enters namespaces before Go starts
)

func init() {
	if os.Getenv("_LIBCONTAINER_INITPIPE") != "" {
		libcontainer.Init() // becomes the command
	}
}
