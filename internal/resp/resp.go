// Package resp is the Redis serialization protocol, versions 2 and 3: requests
// as argument lists, replies as raw bytes that can be relayed without being
// decoded, and a decoded form for the few that must be looked into. It knows
// no sockets and no policy. Specification: https://redis.io/docs/reference/protocol-spec/
package resp

import (
	"errors"
	"strconv"
)

// Type bytes of replies. The second group exists in version 3 only.
const (
	SimpleString = '+'
	Error        = '-'
	Integer      = ':'
	Bulk         = '$'
	Array        = '*'

	Null           = '_'
	Boolean        = '#'
	Double         = ','
	BigNumber      = '('
	BulkError      = '!'
	VerbatimString = '='
	Map            = '%'
	Set            = '~'
	Attribute      = '|'
	Push           = '>'
)

// Defaults of Limits.
const (
	DefaultMaxBulk    = 64 << 20
	DefaultMaxArgs    = 1 << 20
	DefaultMaxRequest = 128 << 20
	DefaultMaxInline  = 64 << 10
)

// MaxDepth is how deep a reply may nest to be decoded by Parse. Relayed
// replies may nest at will: scanning them needs no stack.
const MaxDepth = 64

// Limits bound what one request may make the reader hold. Zero fields take
// the defaults.
type Limits struct {
	// MaxBulk is the largest single argument, in bytes.
	MaxBulk int
	// MaxArgs is the largest number of arguments, the command's name included.
	MaxArgs int
	// MaxRequest is the largest request in bytes on the wire.
	MaxRequest int
	// MaxInline is the longest line of an inline request or of a header.
	MaxInline int
}

func (l Limits) withDefaults() Limits {
	if l.MaxBulk <= 0 {
		l.MaxBulk = DefaultMaxBulk
	}
	if l.MaxArgs <= 0 {
		l.MaxArgs = DefaultMaxArgs
	}
	if l.MaxRequest <= 0 {
		l.MaxRequest = DefaultMaxRequest
	}
	if l.MaxInline <= 0 {
		l.MaxInline = DefaultMaxInline
	}
	return l
}

// ProtocolError says what is wrong with bytes that are not valid RESP or
// exceed a limit. The stream cannot be read on after it.
type ProtocolError string

func (e ProtocolError) Error() string { return "Protocol error: " + string(e) }

// errIncomplete asks for more bytes; it never leaves the package.
var errIncomplete = errors.New("resp: incomplete")

// parseInt reads a canonical decimal as Redis does: no leading zeros, no plus
// sign. Canonical matters, because requests are relayed as they came and the
// server behind must see the same lengths.
func parseInt(b []byte) (int, bool) {
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	neg := false
	if b[0] == '-' {
		neg = true
		b = b[1:]
		if len(b) == 0 || b[0] == '0' {
			return 0, false
		}
	}
	if b[0] == '0' && len(b) > 1 {
		return 0, false
	}
	n := 0
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	if neg {
		n = -n
	}
	return n, true
}

// AppendCommand appends a request with the given arguments.
func AppendCommand(dst []byte, args ...[]byte) []byte {
	dst = AppendArray(dst, len(args))
	for _, a := range args {
		dst = AppendBulk(dst, a)
	}
	return dst
}

// AppendCommandStrings is AppendCommand for strings.
func AppendCommandStrings(dst []byte, args ...string) []byte {
	dst = AppendArray(dst, len(args))
	for _, a := range args {
		dst = AppendBulkString(dst, a)
	}
	return dst
}

func appendHeader(dst []byte, kind byte, n int) []byte {
	dst = append(dst, kind)
	dst = strconv.AppendInt(dst, int64(n), 10)
	return append(dst, '\r', '\n')
}

// AppendArray appends the header of an array of n elements.
func AppendArray(dst []byte, n int) []byte { return appendHeader(dst, Array, n) }

// AppendMap appends the header of a map of n pairs: as an array of 2n
// elements for clients of version 2.
func AppendMap(dst []byte, n, version int) []byte {
	if version >= 3 {
		return appendHeader(dst, Map, n)
	}
	return appendHeader(dst, Array, 2*n)
}

// AppendPush appends the header of an out-of-band message of n elements: an
// array for clients of version 2.
func AppendPush(dst []byte, n, version int) []byte {
	if version >= 3 {
		return appendHeader(dst, Push, n)
	}
	return appendHeader(dst, Array, n)
}

// AppendBulk appends a bulk string.
func AppendBulk(dst, b []byte) []byte {
	dst = appendHeader(dst, Bulk, len(b))
	dst = append(dst, b...)
	return append(dst, '\r', '\n')
}

// AppendBulkString appends a bulk string.
func AppendBulkString(dst []byte, s string) []byte {
	dst = appendHeader(dst, Bulk, len(s))
	dst = append(dst, s...)
	return append(dst, '\r', '\n')
}

// AppendInt appends an integer.
func AppendInt(dst []byte, n int64) []byte {
	dst = append(dst, Integer)
	dst = strconv.AppendInt(dst, n, 10)
	return append(dst, '\r', '\n')
}

// AppendSimple appends a simple string, which must not contain line ends.
func AppendSimple(dst []byte, s string) []byte {
	dst = append(dst, SimpleString)
	dst = append(dst, s...)
	return append(dst, '\r', '\n')
}

// AppendError appends an error. Line ends in msg become spaces, so that bytes
// of a client can never forge a second reply.
func AppendError(dst []byte, msg string) []byte {
	dst = append(dst, Error)
	for i := range len(msg) {
		if c := msg[i]; c == '\r' || c == '\n' {
			dst = append(dst, ' ')
		} else {
			dst = append(dst, c)
		}
	}
	return append(dst, '\r', '\n')
}

// AppendNull appends the null bulk string of version 2 or the null of 3.
func AppendNull(dst []byte, version int) []byte {
	if version >= 3 {
		return append(dst, "_\r\n"...)
	}
	return append(dst, "$-1\r\n"...)
}

// AppendNullArray appends the null array of version 2 or the null of 3.
func AppendNullArray(dst []byte, version int) []byte {
	if version >= 3 {
		return append(dst, "_\r\n"...)
	}
	return append(dst, "*-1\r\n"...)
}
