package policy

import (
	"errors"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Path brings the path of a request, as it is sent, into the one form that rules
// are compared with: its escapes decoded. A path that servers read differently
// has none, and no rule with paths allows it: empty and dot segments, escaped
// slashes, backslashes, path parameters, what is escaped twice, and what is no
// text. The request goes out as it was written, so nothing here may be a guess.
func Path(raw string) (string, error) {
	rest, ok := strings.CutPrefix(raw, "/")
	if !ok {
		return "", errors.New("it does not begin with a slash")
	}
	segments := strings.Split(rest, "/")
	for i, segment := range segments {
		text, err := decode(segment)
		switch {
		case err != nil:
			return "", err
		case text == "" && i < len(segments)-1:
			return "", errors.New("there are two slashes in a row")
		case text == "." || text == "..":
			return "", errors.New("there is a dot segment in it")
		}
		segments[i] = text
	}
	return "/" + strings.Join(segments, "/"), nil
}

var escape = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)

// decode returns what a segment of a path, or a part of one, stands for.
func decode(segment string) (string, error) {
	text, err := url.PathUnescape(segment)
	switch {
	case err != nil:
		return "", errors.New("there is a % in it that begins no escape")
	case strings.Contains(segment, "#"):
		return "", errors.New("there is a fragment in it")
	case strings.Contains(text, "/"):
		return "", errors.New("there is an escaped slash in it")
	case strings.Contains(text, `\`):
		return "", errors.New("there is a backslash in it")
	case strings.Contains(text, ";"):
		return "", errors.New("there are path parameters in it")
	case escape.MatchString(text):
		return "", errors.New("there is an escape of an escape in it")
	case !utf8.ValidString(text):
		return "", errors.New("it is not UTF-8")
	case strings.ContainsFunc(text, unicode.IsControl):
		return "", errors.New("there is a control character in it")
	}
	return text, nil
}

// glob is a pattern of paths. In a segment, "*" stands for any characters; as a
// segment, "**" stands for any segments, none included.
type glob struct {
	text     string
	segments []segment
	loose    []segment // what loosen makes of them
}

// segment is the literal parts of a segment's pattern, between the stars; nil
// stands for "**".
type segment []string

func parseGlob(text string) (glob, error) {
	g := glob{text: text}
	switch {
	case strings.ContainsFunc(text, unicode.IsSpace):
		return g, errors.New("write a space in it as %20")
	case strings.Contains(text, "?"):
		return g, errors.New("a query is no part of it")
	}
	// What a pattern is made of must be a path with one form itself.
	if _, err := Path(strings.ReplaceAll(text, "*", "x")); err != nil {
		return g, err
	}
	for part := range strings.SplitSeq(text[1:], "/") {
		if part == "**" {
			g.segments = append(g.segments, nil)
			continue
		}
		if strings.Contains(part, "**") {
			return g, errors.New("** stands only for whole segments: /a/**")
		}
		var s segment
		for literal := range strings.SplitSeq(part, "*") {
			literal, err := decode(literal)
			if err != nil {
				return g, err
			}
			s = append(s, literal)
		}
		g.segments = append(g.segments, s)
	}
	for _, s := range withoutSlash(g.segments, func(s segment) bool { return len(s) == 1 && s[0] == "" }) {
		var loose segment
		for _, literal := range s {
			loose = append(loose, strings.ToLower(literal))
		}
		if last := len(loose) - 1; last >= 0 {
			loose[last] = strings.TrimRight(loose[last], ". ")
		}
		g.loose = append(g.loose, loose)
	}
	return g, nil
}

// withoutSlash drops the empty segment behind a path's last slash.
func withoutSlash[S any](segments []S, empty func(S) bool) []S {
	if last := len(segments) - 1; last > 0 && empty(segments[last]) {
		return segments[:last]
	}
	return segments
}

// matches reports whether a path, in the form of Path, is one of the pattern's.
func (g glob) matches(path string) bool {
	return matchSegments(g.segments, strings.Split(path[1:], "/"))
}

// matchesLoosely takes for the same what some servers do: letters of any case, a
// slash at the end, dots and spaces at the end of a name. It is for rules that
// deny, which must not be passed by another spelling.
func (g glob) matchesLoosely(path string) bool {
	segments := strings.Split(strings.ToLower(path[1:]), "/")
	segments = withoutSlash(segments, func(s string) bool { return s == "" })
	for i, s := range segments {
		segments[i] = strings.TrimRight(s, ". ")
	}
	return g.matches(path) || matchSegments(g.loose, segments)
}

// matchSegments goes back to the last "**" alone when it is stuck, which is
// enough, and takes no longer than both lengths multiplied.
func matchSegments(pattern []segment, path []string) bool {
	p, t := 0, 0
	stars, resume := -1, 0
	for t < len(path) {
		switch {
		case p < len(pattern) && pattern[p] == nil:
			stars, resume = p, t
			p++
		case p < len(pattern) && pattern[p].matches(path[t]):
			p++
			t++
		case stars >= 0:
			resume++
			p, t = stars+1, resume
		default:
			return false
		}
	}
	return !slices.ContainsFunc(pattern[p:], func(s segment) bool { return s != nil })
}

func (s segment) matches(text string) bool {
	text, ok := strings.CutPrefix(text, s[0])
	if !ok || len(s) == 1 {
		return ok && text == ""
	}
	for _, literal := range s[1 : len(s)-1] {
		_, after, found := strings.Cut(text, literal)
		if !found {
			return false
		}
		text = after
	}
	return strings.HasSuffix(text, s[len(s)-1])
}
