//go:build !noaudit

package audit

// Recording says that journals are written. Only a build that measures what they
// cost, with tag noaudit, does not: it must never do a run's work.
const Recording = true
