package resp

import (
	"bytes"
	"errors"
	"io"
)

// ReplyReader reads replies of a server as raw bytes.
type ReplyReader struct {
	src  io.Reader
	buf  []byte
	r, w int
	max  int
}

// NewReplyReader reads from src; a reply of more than maxReply bytes is
// dropped. maxReply 0 means no limit.
func NewReplyReader(src io.Reader, maxReply int) *ReplyReader {
	return &ReplyReader{src: src, buf: make([]byte, 32<<10), max: maxReply}
}

// Buffered is the number of bytes that were read but not consumed.
func (rd *ReplyReader) Buffered() int { return rd.w - rd.r }

func (rd *ReplyReader) fill() error {
	if rd.r > 0 {
		rd.w = copy(rd.buf, rd.buf[rd.r:rd.w])
		rd.r = 0
	}
	if rd.w == len(rd.buf) {
		return ProtocolError("reply line too long")
	}
	n, err := rd.src.Read(rd.buf[rd.w:])
	rd.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// line returns the next line without its end.
func (rd *ReplyReader) line() ([]byte, error) {
	scanned := 0
	for {
		if i := bytes.IndexByte(rd.buf[rd.r+scanned:rd.w], '\n'); i >= 0 {
			end := rd.r + scanned + i
			line := rd.buf[rd.r:end]
			rd.r = end + 1
			if len(line) < 2 || line[len(line)-1] != '\r' {
				return nil, ProtocolError("reply line without carriage return")
			}
			return line[:len(line)-1], nil
		}
		scanned = rd.w - rd.r
		if err := rd.fill(); err != nil {
			return nil, err
		}
	}
}

// ErrReplyTooLarge is returned for a reply over the limit, which has been read
// and dropped: the stream is at the next reply.
var ErrReplyTooLarge = errors.New("reply over the limit")

// Append reads one complete reply, nested ones included, and appends its
// bytes to dst. On an error dst is returned as far as it was filled. Every
// error but ErrReplyTooLarge means that the stream cannot be read on.
func (rd *ReplyReader) Append(dst []byte) ([]byte, error) {
	start := len(dst)
	drop := false
	for todo := 1; todo > 0; {
		line, err := rd.line()
		if err != nil {
			return dst, err
		}
		dst = append(dst, line...)
		dst = append(dst, '\r', '\n')
		todo--
		if drop = drop || rd.max > 0 && len(dst)-start > rd.max; drop {
			dst = dst[:start]
		}
		switch kind := line[0]; kind {
		case SimpleString, Error, Integer, Null, Boolean, Double, BigNumber:
		case Bulk, BulkError, VerbatimString:
			n, ok := parseInt(line[1:])
			if !ok || n < -1 || (n < 0 && kind != Bulk) {
				return dst, ProtocolError("invalid bulk length in reply")
			}
			if n < 0 {
				continue
			}
			if drop = drop || rd.max > 0 && len(dst)-start+n > rd.max; drop {
				dst, err = dst[:start], rd.skip(n+2)
			} else {
				dst, err = rd.take(dst, n+2)
			}
			if err != nil {
				return dst, err
			}
		case Array, Set, Push, Map, Attribute:
			n, ok := parseInt(line[1:])
			if !ok || n < -1 || n > 1<<31 {
				return dst, ProtocolError("invalid length in reply")
			}
			switch {
			case n < 0:
			case kind == Map:
				todo += 2 * n
			case kind == Attribute: // comes before the value it belongs to
				todo += 2*n + 1
			default:
				todo += n
			}
		default:
			return dst, ProtocolError("unknown type in reply")
		}
	}
	if drop {
		return dst[:start], ErrReplyTooLarge
	}
	return dst, nil
}

// skip drops the next n bytes.
func (rd *ReplyReader) skip(n int) error {
	for {
		k := min(n, rd.w-rd.r)
		rd.r += k
		if n -= k; n == 0 {
			return nil
		}
		if err := rd.fill(); err != nil {
			return err
		}
	}
}

// take appends the next n bytes to dst, growing it as they arrive.
func (rd *ReplyReader) take(dst []byte, n int) ([]byte, error) {
	for n > 0 {
		if rd.r < rd.w {
			k := min(n, rd.w-rd.r)
			dst = append(dst, rd.buf[rd.r:rd.r+k]...)
			rd.r += k
			n -= k
			continue
		}
		rd.r, rd.w = 0, 0
		if n < len(rd.buf) {
			if err := rd.fill(); err != nil {
				return dst, err
			}
			continue
		}
		// A large value goes straight to its place, a step at a time: its
		// announced length alone must not make us allocate.
		k := min(n, 1<<20)
		at := len(dst)
		dst = grow(dst, k)[:at+k]
		if _, err := io.ReadFull(rd.src, dst[at:]); err != nil {
			return dst[:at], err
		}
		n -= k
	}
	return dst, nil
}

func grow(b []byte, n int) []byte {
	if cap(b)-len(b) >= n {
		return b
	}
	out := make([]byte, len(b), max(2*cap(b), len(b)+n))
	copy(out, b)
	return out
}

// Value is a decoded reply. Its slices point into the bytes it was parsed from.
type Value struct {
	// Kind is the type byte.
	Kind byte
	// IsNull is set for the nulls of version 2 and 3.
	IsNull bool
	// Str is the content of every type that is not an aggregate.
	Str []byte
	// Elems holds the elements of an aggregate; a map has keys and values in turn.
	Elems []Value
}

// Parse decodes the first reply in raw and returns what follows it.
func Parse(raw []byte) (v Value, rest []byte, err error) { return parse(raw, MaxDepth) }

func parse(raw []byte, depth int) (Value, []byte, error) {
	if depth == 0 {
		return Value{}, nil, ProtocolError("reply nested too deep")
	}
	i := bytes.IndexByte(raw, '\n')
	if i < 2 || raw[i-1] != '\r' {
		return Value{}, nil, ProtocolError("incomplete reply")
	}
	v := Value{Kind: raw[0], Str: raw[1 : i-1]}
	rest := raw[i+1:]
	switch v.Kind {
	case SimpleString, Error, Integer, Boolean, Double, BigNumber:
		return v, rest, nil
	case Null:
		v.IsNull, v.Str = true, nil
		return v, rest, nil
	}
	n, ok := parseInt(v.Str)
	if !ok || n < -1 {
		return Value{}, nil, ProtocolError("invalid length in reply")
	}
	if n < 0 {
		v.IsNull, v.Str = true, nil
		return v, rest, nil
	}
	switch v.Kind {
	case Bulk, BulkError, VerbatimString:
		if n > len(rest)-2 {
			return Value{}, nil, ProtocolError("incomplete reply")
		}
		v.Str = rest[:n:n]
		return v, rest[n+2:], nil
	case Map, Attribute:
		n *= 2
	case Array, Set, Push:
	default:
		return Value{}, nil, ProtocolError("unknown type in reply")
	}
	v.Str = nil
	if n > len(rest)/3 { // the shortest element has three bytes
		return Value{}, nil, ProtocolError("incomplete reply")
	}
	v.Elems = make([]Value, n)
	for i := range v.Elems {
		var err error
		if v.Elems[i], rest, err = parse(rest, depth-1); err != nil {
			return Value{}, nil, err
		}
	}
	if v.Kind == Attribute {
		return parse(rest, depth-1)
	}
	return v, rest, nil
}

// Int returns the number of an integer reply or of a string that holds one.
func (v Value) Int() (int64, bool) {
	n, ok := parseInt(v.Str)
	return int64(n), ok
}

// AppendValue appends v in the form it was parsed from.
func AppendValue(dst []byte, v Value) []byte {
	switch v.Kind {
	case SimpleString, Error, Integer, Boolean, Double, BigNumber:
		dst = append(dst, v.Kind)
		dst = append(dst, v.Str...)
		return append(dst, '\r', '\n')
	case Null:
		return append(dst, "_\r\n"...)
	}
	if v.IsNull {
		dst = append(dst, v.Kind)
		return append(dst, "-1\r\n"...)
	}
	switch v.Kind {
	case Bulk, BulkError, VerbatimString:
		dst = appendHeader(dst, v.Kind, len(v.Str))
		dst = append(dst, v.Str...)
		return append(dst, '\r', '\n')
	case Map:
		dst = appendHeader(dst, v.Kind, len(v.Elems)/2)
	default:
		dst = appendHeader(dst, v.Kind, len(v.Elems))
	}
	for _, e := range v.Elems {
		dst = AppendValue(dst, e)
	}
	return dst
}

// Wait returns when at least one byte is there to be read.
func (rd *ReplyReader) Wait() error {
	if rd.r < rd.w {
		return nil
	}
	return rd.fill()
}
