package policy

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/idna"
)

// Host brings a host into its one form: a name in lower case and A-labels (RFC
// 5891) without its last dot, or an address as netip writes it. Only an IPv6
// address may be in brackets. Other spellings of addresses, such as "127.1" or
// "0x7f000001", are refused.
func Host(text string) (string, error) {
	literal, bracketed := text, strings.HasPrefix(text, "[") && strings.HasSuffix(text, "]")
	if bracketed {
		literal = text[1 : len(text)-1]
	}
	if addr, err := netip.ParseAddr(literal); err == nil && (!bracketed || addr.Is6()) {
		if addr.Zone() != "" {
			return "", fmt.Errorf("address %q has a zone", text)
		}
		return addr.Unmap().String(), nil
	}
	name := strings.TrimSuffix(text, ".")
	if !isASCII(name) {
		ascii, err := idna.Lookup.ToASCII(name)
		if err != nil {
			return "", fmt.Errorf("host %q: %w", text, err)
		}
		name = ascii
	}
	name = strings.ToLower(name)
	if err := checkName(name); err != nil {
		return "", fmt.Errorf("host %q: %w", text, err)
	}
	return name, nil
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= 0x80 }) < 0
}

// checkName takes the names that are in use, underscores included, and not
// such that some resolvers would read as an address ("127.1", "0x7f.1").
func checkName(name string) error {
	if name == "" {
		return fmt.Errorf("it is empty")
	}
	if len(name) > 253 {
		return fmt.Errorf("it is longer than 253 characters")
	}
	if isNumber(name[strings.LastIndexByte(name, '.')+1:]) {
		return fmt.Errorf("it ends with a number and is no address in its usual form")
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return fmt.Errorf("a label must have 1 to 63 characters")
		}
		for i := range len(label) {
			c := label[i]
			if c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
				return fmt.Errorf("%q may not be in a name", c)
			}
		}
	}
	return nil
}

// isNumber reports whether a last label makes a name an address: a number,
// decimal, octal or hexadecimal (WHATWG URL, "ends in a number").
func isNumber(label string) bool {
	digits, set := label, "0123456789"
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		digits, set = hex, "0123456789abcdef"
	}
	return label != "" && strings.Trim(digits, set) == ""
}
