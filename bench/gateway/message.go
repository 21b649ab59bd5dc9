//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

// head is the beginning of an HTTP/1.1 message.
type head struct {
	line        []byte // request line or status line
	size        int    // with its empty line
	body        body
	closes      bool // "Connection: close"
	eventStream bool
}

const maxHead = 16 << 10

// parseHead reads a head from the start of b; ok is false as long as it is not
// whole.
func parseHead(b []byte) (h head, ok bool, err error) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		if len(b) > maxHead {
			return h, false, errors.New("the head of a message has no end")
		}
		return h, false, nil
	}
	h.size = end + 4
	h.body.left = -1
	line, rest, _ := bytes.Cut(b[:end+2], []byte("\r\n"))
	h.line = line
	for len(rest) > 0 {
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		colon := bytes.IndexByte(line, ':')
		if colon < 0 {
			return h, false, fmt.Errorf("header %q has no colon", line)
		}
		name, value := line[:colon], bytes.TrimSpace(line[colon+1:])
		switch len(name) {
		case len("connection"):
			if bytes.EqualFold(name, []byte("connection")) {
				h.closes = bytes.EqualFold(value, []byte("close"))
			}
		case len("content-type"):
			if bytes.EqualFold(name, []byte("content-type")) {
				h.eventStream = bytes.HasPrefix(value, []byte("text/event-stream"))
			}
		case len("content-length"):
			if bytes.EqualFold(name, []byte("content-length")) {
				if h.body.left, err = strconv.ParseInt(string(value), 10, 32); err != nil || h.body.left < 0 {
					return h, false, fmt.Errorf("content length %q", value)
				}
			}
		case len("transfer-encoding"):
			if bytes.EqualFold(name, []byte("transfer-encoding")) {
				h.body.chunked = bytes.EqualFold(value, []byte("chunked"))
			}
		}
	}
	if h.body.chunked {
		h.body.left = 0
	}
	return h, true, nil
}

// body reads the body of a message piece by piece.
type body struct {
	chunked bool
	state   chunkState
	left    int64 // of the body or the chunk; less than zero is until the connection's end
}

type chunkState uint8

const (
	chunkSize chunkState = iota
	chunkData
	chunkEnd // the line end behind a chunk's data
	chunkTrailer
	chunkDone
)

// next returns the next piece of the body, how much of b it used up, and if the
// body has ended. When it uses nothing, it needs more.
func (d *body) next(b []byte) (piece []byte, used int, done bool, err error) {
	if !d.chunked {
		if d.left < 0 {
			return b, len(b), false, nil
		}
		n := int(min(int64(len(b)), d.left))
		d.left -= int64(n)
		return b[:n], n, d.left == 0, nil
	}
	for {
		switch d.state {
		case chunkDone:
			return nil, used, true, nil
		case chunkData:
			n := int(min(int64(len(b)-used), d.left))
			if d.left -= int64(n); d.left == 0 {
				d.state = chunkEnd
			}
			return b[used : used+n], used + n, false, nil
		}
		end := bytes.IndexByte(b[used:], '\n')
		if end < 0 {
			if len(b)-used > 256 {
				return nil, used, false, errors.New("the line of a chunk has no end")
			}
			return nil, used, false, nil
		}
		line := bytes.TrimSuffix(b[used:used+end], []byte("\r"))
		used += end + 1
		switch d.state {
		case chunkSize:
			size, _, _ := bytes.Cut(line, []byte(";"))
			n, err := strconv.ParseInt(string(bytes.TrimSpace(size)), 16, 32)
			if err != nil || n < 0 {
				return nil, used, false, fmt.Errorf("chunk size %q", size)
			}
			d.left, d.state = n, chunkData
			if n == 0 {
				d.state = chunkTrailer
			}
		case chunkEnd:
			if len(line) > 0 {
				return nil, used, false, fmt.Errorf("%q behind a chunk", line)
			}
			d.state = chunkSize
		case chunkTrailer:
			if len(line) == 0 {
				d.state = chunkDone
			}
		}
	}
}

// whole reads a whole body at the start of b. The body is in scratch, or in b;
// ok is false as long as it is not whole.
func (d body) whole(b, scratch []byte) (text []byte, used int, ok bool, err error) {
	if !d.chunked {
		if d.left < 0 {
			return nil, 0, false, errors.New("a body without a length")
		}
		if int64(len(b)) < d.left {
			return nil, 0, false, nil
		}
		return b[:d.left], int(d.left), true, nil
	}
	scratch = scratch[:0]
	for {
		piece, n, done, err := d.next(b[used:])
		used += n
		scratch = append(scratch, piece...)
		switch {
		case err != nil:
			return nil, 0, false, err
		case done:
			return scratch, used, true, nil
		case len(piece) == 0:
			return nil, 0, false, nil
		}
	}
}
