package dify

import (
	"bytes"
	"encoding/json"
	"slices"
)

// AskStream returns the body of a blocking call with "response_mode" set to
// "streaming", and every other byte as it was. It returns false for what it
// cannot change for certain: a body that is not one JSON object by the strict
// rules, a mode that Dify has to refuse, one whose name is written with escapes.
func AskStream(body []byte) ([]byte, bool) {
	if !json.Valid(body) || body[skipSpaces(body, 0)] != '{' {
		return nil, false
	}
	var at, length, members int // of the last mode's value, quotes included
	ok, key, depth := true, true, 0
	isMode := false
	for i := 0; i < len(body) && ok; {
		switch c := body[i]; c {
		case '"':
			s, next := scanString(body, i)
			if depth == 1 {
				switch {
				case key:
					members++
					isMode, key = string(s) == "response_mode", false
					ok = bytes.IndexByte(s, '\\') < 0
				case isMode:
					at, length, isMode = i, next-i, false
					ok = string(s) == "blocking"
				}
			}
			i = next
			continue
		case '{', '[':
			ok = !isMode
			depth++
		case '}', ']':
			depth--
		case ',':
			if depth == 1 {
				key = true
			}
		case ' ', '\t', '\r', '\n', ':':
		default:
			// A number, true, false or null.
			ok = !isMode
		}
		i++
	}
	if !ok {
		return nil, false
	}
	if length > 0 {
		return slices.Concat(body[:at], []byte(`"streaming"`), body[at+length:]), true
	}
	end := bytes.LastIndexByte(body, '}')
	if end < 0 {
		return nil, false
	}
	member := `,"response_mode":"streaming"`
	if members == 0 {
		member = member[1:]
	}
	return slices.Concat(body[:end], []byte(member), body[end:]), true
}
