package grant

import (
	"fmt"
	"slices"
	"strings"
)

// Error is an unusable value of a grant's, with what to write instead.
type Error struct {
	Err  error
	Hint string // one line; may be empty
}

// Error implements error.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the error without its hint.
func (e *Error) Unwrap() error { return e.Err }

// bad makes an Error: first what is wrong, then what to write instead.
func bad(err error, hint string, args ...any) error {
	return &Error{Err: err, Hint: fmt.Sprintf(hint, args...)}
}

const (
	maxPath  = 512 // bytes of a path in IAM, slashes included
	findRole = "aws iam get-role --role-name NAME --query Role.Arn prints a role's ARN"
)

const (
	digits  = "0123456789"
	lower   = "abcdefghijklmnopqrstuvwxyz"
	letters = lower + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	nameSet = letters + digits + "_+=,.@-" // what IAM makes names of
)

// made reports whether a text is made of the characters in set, from least to
// most of them.
func made(text, set string, least, most int) bool {
	return len(text) >= least && len(text) <= most && strings.Trim(text, set) == ""
}

func isAccount(text string) bool { return made(text, digits, 12, 12) }

func isRoleName(text string) bool { return made(text, nameSet, 1, 64) }

// iamARN is what the ARNs of roles and managed policies have in common.
type iamARN struct {
	partition Partition
	account   string // 12 digits, or "aws" in policies of AWS's own
	kind      string // "role", "policy"
	path      string // from / to /
	name      string
}

func (a iamARN) String() string {
	return fmt.Sprintf("arn:%s:iam::%s:%s%s%s", a.partition.Name, a.account, a.kind, a.path, a.name)
}

// splitARN splits into arn, partition, service, region, account and resource. The
// resource may have colons of its own.
func splitARN(text string) ([]string, bool) {
	parts := strings.SplitN(text, ":", 6)
	return parts, len(parts) == 6 && parts[0] == "arn"
}

// parseRole reads the ARN of a role that can be assumed.
func parseRole(text string) (iamARN, error) {
	parts, ok := splitARN(text)
	if !ok {
		return iamARN{}, bad(fmt.Errorf("role %q is not an ARN", text),
			"write arn:aws:iam::123456789012:role/NAME; %s", findRole)
	}
	partition, err := parsePartition("role", text, parts[1])
	if err != nil {
		return iamARN{}, err
	}
	service, region, account, resource := parts[2], parts[3], parts[4], parts[5]
	kind, rest, _ := strings.Cut(resource, "/")
	// What the user most likely means, so that it can be pasted back.
	likely := func(name string) string {
		if !isAccount(account) || !isRoleName(name) {
			return fmt.Sprintf("arn:%s:iam::123456789012:role/NAME", partition.Name)
		}
		return fmt.Sprintf("arn:%s:iam::%s:role/%s", partition.Name, account, name)
	}
	if kind == "assumed-role" {
		name, _, _ := strings.Cut(rest, "/")
		return iamARN{}, bad(fmt.Errorf("%q is a session of a role, not a role", text),
			"write the role itself: %s (with its path, where it has one; %s)", likely(name), findRole)
	}
	if service == "sts" {
		return iamARN{}, bad(fmt.Errorf("%q is an ARN of STS, not a role", text),
			"write the role: %s; %s", likely(""), findRole)
	}
	if service != "iam" {
		return iamARN{}, bad(fmt.Errorf("role %q: the service is %q, roles are of iam", text, service),
			"write %s", likely(rest))
	}
	if region != "" {
		without := fmt.Sprintf("arn:%s:iam::%s:%s", partition.Name, account, resource)
		if _, err := parseRole(without); err != nil {
			without = likely("")
		}
		return iamARN{}, bad(fmt.Errorf("role %q: there is a region in it, %q, but roles belong to none", text, region),
			"leave it out: %s; the region is chosen with --region", without)
	}
	if !isAccount(account) {
		return iamARN{}, bad(fmt.Errorf("role %q: the account %q is not 12 digits", text, account),
			"write the account's number with its leading zeros; aws sts get-caller-identity --query Account prints your own")
	}
	switch kind {
	case "role":
	case "user":
		return iamARN{}, bad(fmt.Errorf("%q is a user, which cannot be assumed", text),
			"make a role that this user may assume, as in examples/grant-aws, and write its ARN: %s", likely(""))
	default:
		return iamARN{}, bad(fmt.Errorf("%q is not a role", text), "write %s; %s", likely(""), findRole)
	}
	if strings.HasPrefix(rest, "aws-service-role/") {
		return iamARN{}, bad(fmt.Errorf("%q is a service-linked role, which only its AWS service can assume", text),
			"make a role of your own, as in examples/grant-aws")
	}
	a := iamARN{partition: partition, account: account, kind: kind}
	if a.path, a.name, err = parsePath(resource); err != nil {
		return iamARN{}, bad(fmt.Errorf("role %q: %w", text, err), "write %s; %s", likely(""), findRole)
	}
	if !isRoleName(a.name) {
		return iamARN{}, bad(fmt.Errorf("role %q: the name %q is not 1 to 64 of A-Z a-z 0-9 _ + = , . @ -", text, a.name),
			"write %s; %s", likely(""), findRole)
	}
	return a, nil
}

// parsePolicyARN reads the ARN of a managed policy, of AWS or of an account.
func parsePolicyARN(text string) (iamARN, error) {
	const hint = "write arn:aws:iam::aws:policy/NAME or arn:aws:iam::123456789012:policy/NAME; aws iam list-policies prints them"
	parts, ok := splitARN(text)
	if !ok {
		return iamARN{}, bad(fmt.Errorf("policy %q is not an ARN", text), hint)
	}
	partition, err := parsePartition("policy", text, parts[1])
	if err != nil {
		return iamARN{}, err
	}
	a := iamARN{partition: partition, account: parts[4]}
	resource := parts[5]
	a.kind, _, _ = strings.Cut(resource, "/")
	switch {
	case parts[2] != "iam":
		err = fmt.Errorf("the service is %q, policies are of iam", parts[2])
	case parts[3] != "":
		err = fmt.Errorf("there is a region in it, %q, but policies belong to none", parts[3])
	case a.account != "aws" && !isAccount(a.account):
		err = fmt.Errorf("the account %q is neither 12 digits nor aws", a.account)
	case a.kind != "policy":
		err = fmt.Errorf("%q is not a managed policy", resource)
	default:
		if a.path, a.name, err = parsePath(resource); err == nil && !made(a.name, nameSet, 1, 128) {
			err = fmt.Errorf("the name %q is not 1 to 128 of A-Z a-z 0-9 _ + = , . @ -", a.name)
		}
	}
	if err != nil {
		return iamARN{}, bad(fmt.Errorf("policy %q: %w", text, err), hint)
	}
	return a, nil
}

func parsePartition(what, text, name string) (Partition, error) {
	partition, ok := partitionNamed(name)
	if !ok {
		names := make([]string, len(partitions))
		for i, p := range partitions {
			names[i] = p.Name
		}
		return Partition{}, bad(fmt.Errorf("%s %q: there is no partition %q", what, text, name),
			"an ARN begins with arn:PARTITION:iam::, where PARTITION is one of %s", strings.Join(names, ", "))
	}
	return partition, nil
}

// parsePath splits KIND/PATH/NAME after the kind. A path may hold any printable
// character, colons too.
func parsePath(resource string) (path, name string, err error) {
	first, last := strings.IndexByte(resource, '/'), strings.LastIndexByte(resource, '/')
	if first < 0 {
		return "", "", fmt.Errorf("there is no name in it")
	}
	path, name = resource[first:last+1], resource[last+1:]
	switch {
	case name == "":
		return "", "", fmt.Errorf("the name is empty")
	case len(path) > maxPath:
		return "", "", fmt.Errorf("the path is longer than %d characters", maxPath)
	case path == "//" || strings.ContainsFunc(path, func(r rune) bool { return r < '!' || r > '~' }):
		return "", "", fmt.Errorf("the path %q has characters in it that paths cannot have", path)
	}
	return path, name, nil
}

// duplicate returns a text that is there more than once.
func duplicate(texts []string) (string, bool) {
	for i, text := range texts {
		if slices.Contains(texts[:i], text) {
			return text, true
		}
	}
	return "", false
}
