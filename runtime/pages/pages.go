// Package pages has the kernel back the beginning of Go's heap, and the records of Go's
// runtime, by large pages: a start touches a few in place of a thousand small ones,
// each of which is an entry into the kernel. Go's runtime takes its memory by C's mmap
// where a program has C in it, for the sake of those who stand in between; this
// package's does.
package pages

// void agentops_small_pages(void);
import "C"

// Small ends that. What is given back to the kernel stays with it then; else it
// would in its own time fill a large page again that has become small ones.
func Small() { C.agentops_small_pages() }
