package grant

import "fmt"

// Secret is a text that does not show itself.
type Secret string

const redacted = "[redacted]"

// String implements fmt.Stringer.
func (Secret) String() string { return redacted }

// Format implements fmt.Formatter, for every verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// MarshalText implements encoding.TextMarshaler, and so rules out JSON as well.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
