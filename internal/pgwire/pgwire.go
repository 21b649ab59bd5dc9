// Package pgwire reads and builds messages of the PostgreSQL protocol 3. It
// knows bytes only: no sockets, no policy. Bodies that nobody needs to look at
// are passed on without being decoded.
package pgwire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// HeaderLen is the length of a message's type byte and length field.
const HeaderLen = 5

// MaxMessage is the largest message, header included, that PostgreSQL itself
// accepts from a client (1 GiB).
const MaxMessage = 1 << 30

// MaxSmallMessage is the limit for message types that carry names only, as in
// PostgreSQL (PQ_SMALL_MESSAGE_LIMIT), header included.
const MaxSmallMessage = 10_000

// ErrProtocol is wrapped by every error about bytes that no correct peer sends.
var ErrProtocol = errors.New("protocol violation")

// PeekHeader waits for the next message's header and returns its type and its
// whole size, header included, without consuming anything. It returns io.EOF
// only when the stream ends between messages.
func PeekHeader(r *bufio.Reader) (typ byte, size int, err error) {
	h, err := r.Peek(HeaderLen)
	if err != nil {
		if errors.Is(err, io.EOF) && len(h) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return 0, 0, err
	}
	n := binary.BigEndian.Uint32(h[1:])
	if n < 4 || n >= MaxMessage {
		return 0, 0, fmt.Errorf("%w: message %q with length %d", ErrProtocol, h[0], n)
	}
	return h[0], int(n) + 1, nil
}

// CheckClientSize says whether a client may send a message of this type and size.
func CheckClientSize(typ byte, size int) error {
	switch typ {
	case 'Q', 'P', 'B', 'd', 'F', 'f', 'p':
		return nil
	case 'E', 'D', 'C', 'S', 'H', 'X', 'c':
		if size > MaxSmallMessage {
			return fmt.Errorf("%w: message %q of %d bytes", ErrProtocol, typ, size)
		}
		return nil
	default:
		return fmt.Errorf("%w: unknown message type %q", ErrProtocol, typ)
	}
}

// Copy moves n bytes from r to w through their buffers, and returns how many
// it has given to w.
func Copy(w *bufio.Writer, r *bufio.Reader, n int) (int, error) {
	done := 0
	for done < n {
		avail := r.Buffered()
		if avail == 0 {
			if _, err := r.Peek(1); err != nil {
				return done, unexpected(err)
			}
			avail = r.Buffered()
		}
		if avail > n-done {
			avail = n - done
		}
		b, err := r.Peek(avail)
		if err != nil {
			return done, unexpected(err)
		}
		if _, err := w.Write(b); err != nil {
			return done, &WriteError{err}
		}
		done += avail
		if _, err := r.Discard(avail); err != nil {
			return done, unexpected(err)
		}
	}
	return done, nil
}

// WriteError marks an error of the receiving side of Copy.
type WriteError struct{ Err error }

func (e *WriteError) Error() string { return "write: " + e.Err.Error() }

// Unwrap returns the writer's error.
func (e *WriteError) Unwrap() error { return e.Err }

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// ReadBody consumes the message of the given size whose header was peeked and
// appends its body to dst. The memory grows with what arrives, not with what
// the header promises.
func ReadBody(dst []byte, r *bufio.Reader, size int) ([]byte, error) {
	if _, err := r.Discard(HeaderLen); err != nil {
		return dst, unexpected(err)
	}
	left := size - HeaderLen
	for left > 0 {
		if r.Buffered() == 0 {
			if _, err := r.Peek(1); err != nil {
				return dst, unexpected(err)
			}
		}
		n := min(left, r.Buffered())
		b, err := r.Peek(n)
		if err != nil {
			return dst, unexpected(err)
		}
		dst = append(dst, b...)
		if _, err := r.Discard(n); err != nil {
			return dst, unexpected(err)
		}
		left -= n
	}
	return dst, nil
}

// Skip consumes n bytes.
func Skip(r *bufio.Reader, n int) error {
	_, err := r.Discard(n)
	return unexpected(err)
}

// CString splits b after its first NUL. ok is false when there is none.
func CString(b []byte) (s, rest []byte, ok bool) {
	for i, c := range b {
		if c == 0 {
			return b[:i], b[i+1:], true
		}
	}
	return nil, b, false
}

// HasFullMessage reports whether r already holds the header of another
// message, which is when a writer should wait with its flush.
func HasFullMessage(r *bufio.Reader) bool { return r.Buffered() >= HeaderLen }

// Columns returns the values of a DataRow's body; NULL is nil. ok is false when
// the body is malformed.
func Columns(body []byte) (values [][]byte, ok bool) {
	if len(body) < 2 {
		return nil, false
	}
	n := int(binary.BigEndian.Uint16(body))
	body = body[2:]
	for range n {
		if len(body) < 4 {
			return nil, false
		}
		size := int(int32(binary.BigEndian.Uint32(body))) //nolint:gosec // -1 is NULL
		body = body[4:]
		if size < 0 {
			values = append(values, nil)
			continue
		}
		if size > len(body) {
			return nil, false
		}
		values = append(values, body[:size:size])
		body = body[size:]
	}
	return values, len(body) == 0
}
