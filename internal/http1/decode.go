package http1

import "math"

type framing uint8

const (
	framedLength framing = iota
	framedChunks
	framedClose // the connection's end is the body's
)

type chunkState uint8

const (
	chunkStart chunkState = iota // before the first digit of a size
	chunkSize
	chunkSpace // after the size
	chunkExt   // in an extension
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	trailerStart // at the beginning of a trailer line
	trailerLine
	trailerLF
	lastLF
)

const (
	// maxChunkLine bounds a chunk's size line, extensions included.
	maxChunkLine = 4 << 10
	// maxTrailer bounds all trailers together.
	maxTrailer = 16 << 10
	// maxExcess bounds by how much size lines may outweigh the data; what a chunk
	// of a few bytes needs is free.
	maxExcess = 16 << 10
)

// decoder takes the framing off a body that it is given in pieces of any size.
// It keeps no bytes.
type decoder struct {
	framing framing
	state   chunkState
	done    bool  // the body is complete
	line    int   // bytes of the current size line, or of the trailers
	left    int64 // of the length, or of the current chunk
	excess  int64 // of framing over data
}

// next takes bytes from the beginning of p and returns those that belong to
// the body and how many it took. It takes all of p unless the body ends within
// it or there is a payload in it, after which it is called again.
func (d *decoder) next(p []byte) (payload []byte, n int, err error) {
	switch {
	case d.done:
		return nil, 0, nil
	case d.framing == framedClose:
		return p, len(p), nil
	case d.framing == framedLength:
		n = int(min(int64(len(p)), d.left))
		d.left -= int64(n)
		d.done = d.left == 0
		return p[:n], n, nil
	}
	for n < len(p) {
		if d.state == chunkData {
			k := int(min(int64(len(p)-n), d.left))
			payload = p[n : n+k]
			n += k
			if d.left -= int64(k); d.left == 0 {
				d.state = chunkDataCR
			}
			return payload, n, nil
		}
		if err := d.frame(p[n]); err != nil {
			return nil, n, err
		}
		n++
		if d.done {
			break
		}
	}
	return nil, n, nil
}

// fit shortens p so that nothing behind a body of known length is read.
func (d *decoder) fit(p []byte) []byte {
	if d.framing == framedLength && int64(len(p)) > d.left {
		return p[:d.left]
	}
	return p
}

// inPlace takes the framing out of p. It returns the payload's length and, when
// the body has ended, what lies behind it.
func (d *decoder) inPlace(p []byte) (w int, rest []byte, err error) {
	for r := 0; r < len(p); {
		payload, n, err := d.next(p[r:])
		r += n
		w += copy(p[w:], payload)
		if err != nil {
			return w, nil, err
		}
		if d.done {
			return w, p[r:], nil
		}
	}
	return w, nil, nil
}

// frame takes one byte of a chunked body that is not payload.
func (d *decoder) frame(c byte) error {
	switch d.state {
	case chunkStart, chunkSize:
		if digit := hexDigit(c); digit >= 0 {
			if d.left > (math.MaxInt64-15)/16 {
				return malformed("a chunk's size is too large")
			}
			d.left = d.left*16 + int64(digit)
			d.state = chunkSize
			return d.grow(maxChunkLine)
		}
		if d.state == chunkStart {
			return malformed("a chunk without a size")
		}
		d.state = chunkSpace
		return d.frame(c)
	case chunkSpace:
		switch c {
		case ' ', '\t':
		case ';':
			d.state = chunkExt
		case '\r':
			d.state = chunkSizeLF
		default:
			return malformed("a chunk's size is followed by %q", c)
		}
		return d.grow(maxChunkLine)
	case chunkExt:
		if c == '\r' {
			d.state = chunkSizeLF
			return nil
		}
		if control(c) {
			return malformed("a control character in a chunk's extension")
		}
		return d.grow(maxChunkLine)
	case chunkSizeLF:
		if c != '\n' {
			return malformed("a bare CR after a chunk's size")
		}
		d.excess = max(0, d.excess+int64(d.line)-16-2*min(d.left, maxExcess))
		if d.excess > maxExcess {
			return malformed("chunk sizes and extensions outweigh the data")
		}
		d.line = 0
		d.state = chunkData
		if d.left == 0 {
			d.state = trailerStart
		}
	case chunkDataCR:
		if c != '\r' {
			return malformed("a chunk is longer than its size")
		}
		d.state = chunkDataLF
	case chunkDataLF:
		if c != '\n' {
			return malformed("a chunk is longer than its size")
		}
		d.state = chunkStart
	case trailerStart:
		if c == '\r' {
			d.state = lastLF
			return nil
		}
		d.state = trailerLine
		return d.frame(c)
	case trailerLine:
		if c == '\r' {
			d.state = trailerLF
			return nil
		}
		if control(c) {
			return malformed("a control character in a trailer")
		}
		return d.grow(maxTrailer)
	case trailerLF:
		if c != '\n' {
			return malformed("a bare CR in a trailer")
		}
		d.state = trailerStart
	case lastLF:
		if c != '\n' {
			return malformed("a bare CR after the last chunk")
		}
		d.done = true
	case chunkData: // next has taken it
	}
	return nil
}

func (d *decoder) grow(limit int) error {
	if d.line++; d.line > limit {
		return malformed("a chunk's size line or the trailers are longer than %d bytes", limit)
	}
	return nil
}

func control(c byte) bool { return c < ' ' && c != '\t' || c == 0x7f }

func hexDigit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
