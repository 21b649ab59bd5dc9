package dify

// Mode is what a request's body says in response_mode.
type Mode uint8

// The modes. Everything but "streaming" makes Dify answer in one piece, so a
// body without the field is Blocking; Unknown means that the given prefix of
// the body ended before the field was found.
const (
	Unknown Mode = iota
	Blocking
	Streaming
)

// MaxDepth bounds how deep ResponseMode follows nested values.
const MaxDepth = 512

// ResponseMode reads the top-level response_mode of a JSON body without
// decoding the rest. body may be a prefix; complete says that it is not.
func ResponseMode(body []byte, complete bool) Mode {
	v, state := topLevelString(body, "response_mode")
	switch {
	case state == found && v == "streaming":
		return Streaming
	case state == found, complete, state == malformed:
		return Blocking
	}
	return Unknown
}

type lookup uint8

const (
	absent lookup = iota
	found
	malformed
	cut // the prefix ended first
)

// topLevelString finds the last string member of that name in a JSON object,
// as decoders that keep the last of several equal names do.
func topLevelString(b []byte, name string) (value string, state lookup) {
	i := skipSpaces(b, 0)
	if i == len(b) {
		return "", cut
	}
	if b[i] != '{' {
		return "", malformed
	}
	i++
	depth, key := 1, true
	var current []byte
	result := absent
	for i < len(b) {
		switch c := b[i]; c {
		case '"':
			s, next := scanString(b, i)
			if next < 0 {
				return value, orCut(result)
			}
			i = next
			if depth != 1 {
				continue
			}
			if key {
				current, key = s, false
			} else if string(current) == name {
				value, result = string(s), found
			}
			continue
		case '{', '[':
			if depth++; depth > MaxDepth {
				return "", malformed
			}
		case '}', ']':
			if depth--; depth == 0 {
				return value, result
			}
		case ',':
			key = depth == 1
		}
		i++
	}
	return value, orCut(result)
}

func orCut(l lookup) lookup {
	if l == found {
		return found
	}
	return cut
}

// scanString returns the raw bytes of the string that begins at b[i] and the
// index after it, or -1 when it does not end in b.
func scanString(b []byte, i int) (s []byte, next int) {
	for j := i + 1; j < len(b); j++ {
		switch b[j] {
		case '\\':
			j++
		case '"':
			return b[i+1 : j], j + 1
		}
	}
	return nil, -1
}

func skipSpaces(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r') {
		i++
	}
	return i
}
