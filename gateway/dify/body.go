package dify

import (
	"bytes"
	"encoding/json"
	"slices"
)

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

// MaxDepth bounds how deep Peek follows nested values.
const MaxDepth = 512

// Fields are what the gateway wants to know of a JSON body before it goes on.
type Fields struct {
	Mode Mode
	// User is who the app says is asking: Dify's "user", "" when absent.
	User string
	// Conversation is Dify's "conversation_id"; "" begins a new one.
	Conversation string
}

// Peek reads the top-level members of a JSON body that Fields names, without
// decoding the rest. Where a name comes twice the last one counts, as in Dify's
// decoder. body may be a prefix; complete says that it is not.
func Peek(body []byte, complete bool) Fields {
	var f Fields
	mode, state := "", absent
	end := eachTopLevelString(body, func(name, value []byte) {
		switch string(name) {
		case "response_mode":
			mode, state = decodeString(value), found
		case "user":
			f.User = decodeString(value)
		case "conversation_id":
			f.Conversation = decodeString(value)
		}
	})
	switch {
	case state == found && mode == "streaming":
		f.Mode = Streaming
	case state == found, complete, end != cut:
		f.Mode = Blocking
	}
	return f
}

type lookup uint8

const (
	absent lookup = iota
	found
	malformed
	cut // the prefix ended first
)

// eachTopLevelString calls f with the raw name and value of every string member
// of a JSON object, and says how the object ended: absent when it was whole.
func eachTopLevelString(b []byte, f func(name, value []byte)) lookup {
	i := skipSpaces(b, 0)
	if i == len(b) {
		return cut
	}
	if b[i] != '{' {
		return malformed
	}
	i++
	depth, key := 1, true
	var name []byte
	for i < len(b) {
		switch c := b[i]; c {
		case '"':
			s, next := scanString(b, i)
			if next < 0 {
				return cut
			}
			i = next
			if depth != 1 {
				continue
			}
			if key {
				name, key = s, false
			} else {
				f(name, s)
			}
			continue
		case '{', '[':
			if depth++; depth > MaxDepth {
				return malformed
			}
		case '}', ']':
			if depth--; depth == 0 {
				return absent
			}
		case ',':
			key = depth == 1
		}
		i++
	}
	return cut
}

// decodeString resolves the escapes of a JSON string's inside: who writes the
// same user in another way is the same user.
func decodeString(raw []byte) string {
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw)
	}
	var s string
	if json.Unmarshal(slices.Concat([]byte{'"'}, raw, []byte{'"'}), &s) != nil {
		return string(raw)
	}
	return s
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
