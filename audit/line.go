package audit

import "strconv"

// plainRequest reads the header of a line of http.request that is as most are written,
// without spaces, escapes, and anything but ASCII, in a tenth of the time that
// encoding/json takes. What is not read may be good as well; what is, encoding/json
// reads in the same way. last is where the journal has come to, and expected to be in
// the header.
func plainRequest(line []byte, last *Report) (Header, bool) {
	var seq uint64
	var time, run, prev []byte
	s := scanner{line}
	ok := s.skip(`{"seq":`) && s.number(&seq) &&
		s.skip(`,"time":`) && s.text(&time) &&
		s.skip(`,"run":`) && s.text(&run) &&
		s.skip(`,"type":"http.request","prev":`) && s.text(&prev)
	for ok && string(s.rest) != "}" {
		ok = s.field()
	}
	if !ok {
		return Header{}, false
	}
	return Header{Seq: seq, Time: string(time), Run: known(run, last.Run), Type: "http.request", Prev: known(prev, last.SHA256)}, true
}

// known is a text, without a copy of what is there.
func known(text []byte, there string) string {
	if string(text) == there {
		return there
	}
	return string(text)
}

// scanner reads JSON of one form. Its methods say whether there was what they read.
type scanner struct {
	rest []byte
}

// field reads a field of http.request.
func (s *scanner) field() bool {
	var name, ignored []byte
	if !s.skip(",") || !s.text(&name) || !s.skip(":") {
		return false
	}
	switch string(name) {
	case "flow", "status", "bytes_sent", "bytes_received", "duration_ms":
		var n uint64
		return s.number(&n)
	case "protocol", "method", "url", "upstream", "user_agent", "error":
		return s.text(&ignored)
	case "grants":
		ok := s.skip("[") && s.text(&ignored)
		for ok && !s.skip("]") {
			ok = s.skip(",") && s.text(&ignored)
		}
		return ok
	}
	return false
}

func (s *scanner) skip(what string) bool {
	if len(s.rest) < len(what) || string(s.rest[:len(what)]) != what {
		return false
	}
	s.rest = s.rest[len(what):]
	return true
}

func (s *scanner) text(to *[]byte) bool {
	if !s.skip(`"`) {
		return false
	}
	for i, c := range s.rest {
		switch {
		case c == '"':
			*to, s.rest = s.rest[:i], s.rest[i+1:]
			return true
		case c < ' ' || c > '~' || c == '\\':
			return false
		}
	}
	return false
}

func (s *scanner) number(to *uint64) bool {
	end := 0
	for end < len(s.rest) && '0' <= s.rest[end] && s.rest[end] <= '9' {
		end++
	}
	digits := s.rest[:end]
	if len(digits) > 1 && digits[0] == '0' {
		return false
	}
	n, err := strconv.ParseUint(string(digits), 10, 64)
	*to, s.rest = n, s.rest[end:]
	return err == nil
}
