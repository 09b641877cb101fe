//go:build noaudit

package audit

// Recording says that this build writes no journals: it measures what they cost.
const Recording = false
