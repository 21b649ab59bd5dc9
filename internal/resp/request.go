package resp

import (
	"bytes"
	"io"
)

// Command is one request. Its slices point into the reader's buffer and are
// valid until the next Fill.
type Command struct {
	// Args holds the command's name and arguments; never empty.
	Args [][]byte
	// Raw is the request as it came when it was an array of bulk strings, so
	// that it can be relayed as it is; nil for an inline request.
	Raw []byte
}

const (
	minBuffer  = 4 << 10
	keepBuffer = 64 << 10
)

// RequestReader splits a stream of bytes into requests. Next never reads and
// Fill never parses, so the owner decides when to block. Parsing goes on where
// it stopped: a request costs linear time however its bytes arrive.
type RequestReader struct {
	src io.Reader
	lim Limits
	buf []byte
	r   int // start of the request being parsed
	w   int // end of the bytes read

	// State of a partly parsed array; offsets are relative to r.
	argc    int
	pos     int
	bulk    int // length of the argument whose bytes are awaited, or -1
	offsets []int
}

// NewRequestReader reads from src within lim.
func NewRequestReader(src io.Reader, lim Limits) *RequestReader {
	return &RequestReader{src: src, lim: lim.withDefaults(), buf: make([]byte, minBuffer), bulk: -1}
}

// SetLimits replaces the limits, for example after authentication.
func (rd *RequestReader) SetLimits(lim Limits) { rd.lim = lim.withDefaults() }

// Buffered is the number of bytes read but not returned as a request yet.
func (rd *RequestReader) Buffered() int { return rd.w - rd.r }

// Fill reads once from the source. It may move buffered bytes: requests
// returned before are invalid afterwards. A request over the limit is an error.
func (rd *RequestReader) Fill() error {
	if rd.r == rd.w {
		rd.r, rd.w = 0, 0
		if len(rd.buf) > keepBuffer {
			rd.buf = make([]byte, minBuffer)
		}
	}
	if rd.w == len(rd.buf) {
		if rd.r > 0 && rd.r >= len(rd.buf)/2 {
			rd.w = copy(rd.buf, rd.buf[rd.r:rd.w])
			rd.r = 0
		} else {
			if rd.w-rd.r > rd.lim.MaxRequest {
				return ProtocolError("too big request")
			}
			grown := make([]byte, 2*len(rd.buf))
			rd.w = copy(grown, rd.buf[rd.r:rd.w])
			rd.r = 0
			rd.buf = grown
		}
	}
	n, err := rd.src.Read(rd.buf[rd.w:])
	rd.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}

// Next stores the next complete request in cmd, reusing its memory. It
// returns false when more bytes are needed. Empty requests are skipped.
func (rd *RequestReader) Next(cmd *Command) (bool, error) {
	for {
		if rd.r == rd.w {
			return false, nil
		}
		var err error
		if rd.argc == 0 && rd.buf[rd.r] != Array {
			err = rd.inline(cmd)
		} else {
			err = rd.array(cmd)
		}
		if err == errIncomplete { //nolint:errorlint // private sentinel, never wrapped
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if len(cmd.Args) > 0 {
			return true, nil
		}
	}
}

// line returns the bytes from offset pos (relative to r) to the next line
// end, and the offset behind it.
func (rd *RequestReader) line(pos int) ([]byte, int, error) {
	rest := rd.buf[rd.r+pos : rd.w]
	limit := rest
	if len(limit) > rd.lim.MaxInline+2 {
		limit = limit[:rd.lim.MaxInline+2]
	}
	i := bytes.IndexByte(limit, '\n')
	if i < 0 {
		if len(limit) < len(rest) || len(rest) > rd.lim.MaxInline {
			return nil, 0, ProtocolError("too big inline request")
		}
		return nil, 0, errIncomplete
	}
	return rest[:i], pos + i + 1, nil
}

func (rd *RequestReader) array(cmd *Command) error {
	if rd.argc == 0 {
		head, next, err := rd.line(0)
		if err != nil {
			return err
		}
		n, ok := headerInt(head)
		if !ok || n > rd.lim.MaxArgs {
			return ProtocolError("invalid multibulk length")
		}
		if n <= 0 {
			rd.r += next
			cmd.Args, cmd.Raw = cmd.Args[:0], nil
			return nil
		}
		rd.argc, rd.pos, rd.bulk = n, next, -1
		rd.offsets = rd.offsets[:0]
	}
	for len(rd.offsets) < 2*rd.argc {
		if rd.bulk < 0 {
			if rd.r+rd.pos < rd.w && rd.buf[rd.r+rd.pos] != Bulk {
				return ProtocolError("expected '$', got '" + printable(rd.buf[rd.r+rd.pos]) + "'")
			}
			head, next, err := rd.line(rd.pos)
			if err != nil {
				return err
			}
			n, ok := headerInt(head)
			if !ok || n < 0 || n > rd.lim.MaxBulk {
				return ProtocolError("invalid bulk length")
			}
			if next+n+2 > rd.lim.MaxRequest {
				return ProtocolError("too big request")
			}
			rd.bulk, rd.pos = n, next
		}
		end := rd.pos + rd.bulk
		if rd.r+end+2 > rd.w {
			return errIncomplete
		}
		if rd.buf[rd.r+end] != '\r' || rd.buf[rd.r+end+1] != '\n' {
			return ProtocolError("bulk string without line end")
		}
		rd.offsets = append(rd.offsets, rd.pos, end)
		rd.pos, rd.bulk = end+2, -1
	}
	cmd.Args = cmd.Args[:0]
	base := rd.buf[rd.r:rd.w]
	for i := 0; i < len(rd.offsets); i += 2 {
		a, b := rd.offsets[i], rd.offsets[i+1]
		cmd.Args = append(cmd.Args, base[a:b:b])
	}
	cmd.Raw = base[:rd.pos:rd.pos]
	rd.r += rd.pos
	rd.argc = 0
	if cap(rd.offsets) > 4096 {
		rd.offsets = nil
	}
	return nil
}

// headerInt reads the number of a header line such as "*3\r".
func headerInt(line []byte) (int, bool) {
	if len(line) < 3 || line[len(line)-1] != '\r' {
		return 0, false
	}
	return parseInt(line[1 : len(line)-1])
}

func printable(c byte) string {
	if c < ' ' || c > '~' {
		return "?"
	}
	return string(rune(c))
}

func (rd *RequestReader) inline(cmd *Command) error {
	text, next, err := rd.line(0)
	if err != nil {
		return err
	}
	cmd.Args, cmd.Raw = cmd.Args[:0], nil
	if !splitInline(text, cmd) {
		return ProtocolError("unbalanced quotes in request")
	}
	if len(cmd.Args) > rd.lim.MaxArgs {
		return ProtocolError("too many arguments")
	}
	rd.r += next
	return nil
}

// splitInline splits a line at white space; "…" with escapes and '…' quote, as
// in redis-cli.
func splitInline(s []byte, cmd *Command) bool {
	i := 0
	for {
		for i < len(s) && isSpace(s[i]) {
			i++
		}
		if i == len(s) {
			return true
		}
		var arg []byte
		switch quote := s[i]; quote {
		case '"', '\'':
			i++
			arg = make([]byte, 0, 16)
			for {
				if i == len(s) {
					return false
				}
				c := s[i]
				if c == quote {
					i++
					break
				}
				if c == '\\' && i+1 < len(s) && (quote == '"' || s[i+1] == '\'') {
					if quote == '"' && s[i+1] == 'x' && i+3 < len(s) && isHex(s[i+2]) && isHex(s[i+3]) {
						arg = append(arg, unhex(s[i+2])<<4|unhex(s[i+3]))
						i += 4
						continue
					}
					i++
					c = s[i]
					if quote == '"' {
						c = unescape(c)
					}
				}
				arg = append(arg, c)
				i++
			}
			if i < len(s) && !isSpace(s[i]) {
				return false
			}
		default:
			start := i
			for i < len(s) && !isSpace(s[i]) {
				i++
			}
			arg = s[start:i:i]
		}
		cmd.Args = append(cmd.Args, arg)
	}
}

func isSpace(c byte) bool { return c == ' ' || (c >= '\t' && c <= '\r') || c == 0 }

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c >= 'a':
		return c - 'a' + 10
	case c >= 'A':
		return c - 'A' + 10
	}
	return c - '0'
}

func unescape(c byte) byte {
	switch c {
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	case 'b':
		return '\b'
	case 'a':
		return '\a'
	}
	return c
}
