package http1

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// discardBytes is how much of a body that its handler did not want is read for
// the sake of the connection.
const discardBytes = 256 << 10

// requestBody is a request's body. It is read by one goroutine at a time, which
// may be another one than the handler's.
type requestBody struct {
	c    *served
	shut atomic.Bool // nobody may read any more

	mu        sync.Mutex // held while reading
	d         decoder
	err       error // what Read goes on to return
	continues bool  // "100 Continue" has not been said yet
}

// Read implements io.Reader. A body that breaks off ends with
// io.ErrUnexpectedEOF, one that does not come in time with
// os.ErrDeadlineExceeded.
func (b *requestBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.shut.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	if b.continues {
		b.continues = false
		if err := b.c.sayContinue(); err != nil {
			b.err = err
		}
	}
	return b.read(p, b.c.bodyDeadline())
}

// Close implements io.Closer. What is left is read or given up by the server.
func (b *requestBody) Close() error { return nil }

// read gives what is here, or waits until deadline. b.mu is held.
func (b *requestBody) read(p []byte, deadline time.Time) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for b.err == nil && !b.d.done {
		k := 0
		if pending := b.c.pending; len(pending) > 0 {
			payload, n, err := b.d.next(pending[:min(len(pending), len(p))])
			k = copy(p, payload)
			b.c.took(n)
			b.err = err
		} else {
			n, err := b.c.read(b.d.fit(p), deadline)
			if n > 0 {
				k, b.err = b.inPlace(p[:n]) // an error of reading comes again
			} else if errors.Is(err, io.EOF) {
				b.err = io.ErrUnexpectedEOF
			} else {
				b.err = err
			}
		}
		switch {
		case k > 0 && b.d.done:
			return k, io.EOF
		case k > 0:
			return k, nil
		}
	}
	if b.err != nil {
		return 0, b.err
	}
	return 0, io.EOF
}

// inPlace takes the framing out of p and returns the payload's length. What lies
// behind the body's end is kept for the next request.
func (b *requestBody) inPlace(p []byte) (int, error) {
	n, rest, err := b.d.inPlace(p)
	b.c.keep(rest)
	return n, err
}

// close ends the reading, also one that waits in another goroutine.
func (b *requestBody) close() {
	b.shut.Store(true)
	if !b.mu.TryLock() {
		b.c.interrupt()
		b.mu.Lock()
		b.c.uninterrupt()
	}
	b.mu.Unlock()
}

// ends tells whether the connection should end with the answer: the client
// still waits to be asked for the body, or there is too much of it to be thrown
// away.
func (b *requestBody) ends() bool {
	if !b.mu.TryLock() {
		return false // it is being read
	}
	defer b.mu.Unlock()
	return b.continues || b.err != nil || b.d.framing == framedLength && b.d.left > discardBytes
}

// discard reads what is left, and tells whether the body's end has come. It has
// been closed before.
func (b *requestBody) discard() bool {
	if b.d.done {
		return true
	}
	if b.continues || b.d.framing == framedLength && b.d.left > discardBytes {
		return false
	}
	deadline := time.Now().Add(b.c.s.cfg.HeaderTimeout)
	buf := bodies.Get().(*[bodyBytes]byte)
	defer bodies.Put(buf)
	for n := 0; n <= discardBytes; {
		k, err := b.read(buf[:], deadline)
		n += k
		if err != nil {
			return errors.Is(err, io.EOF)
		}
	}
	return false
}
