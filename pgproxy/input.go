package pgproxy

import (
	"bufio"
	"net"
	"sync"

	"fournines/internal/reactor"
)

// clientBuffer is the read buffer of one client; messages that fit are passed
// on without a copy of their own.
const clientBuffer = 8 << 10

// clientReaders are buffers that no client uses at the moment.
var clientReaders = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, clientBuffer) }}

// noBuffer stands in for the buffer of a client that is silent. Nobody reads it.
var noBuffer = bufio.NewReaderSize(nil, 16)

// input is where a client's buffer reads from.
type input struct {
	conn net.Conn
	fd   int  // while now is set
	now  bool // read what is here, and do not wait
}

// Read implements io.Reader.
func (in *input) Read(p []byte) (int, error) {
	if in.now {
		return reactor.ReadNow(in.fd, p)
	}
	return in.conn.Read(p)
}

// awaitInput waits until the client has sent something. Meanwhile it has no
// buffer, since most clients are silent most of the time; but with TLS there is
// one, because the record layer does the waiting.
func (s *session) awaitInput() error {
	if s.br.Buffered() > 0 {
		return nil
	}
	s.inputErr = nil
	if ok, err := reactor.OnReadable(s.conn, s.fillInput); err != nil || !ok {
		return err
	}
	return s.inputErr
}

// fill reads into a buffer what the client has sent, and returns false when
// that is nothing.
func (s *session) fill(fd uintptr) bool {
	br := s.br
	if br == noBuffer {
		br = clientReaders.Get().(*bufio.Reader)
		br.Reset(&s.input)
	}
	s.input.fd, s.input.now = int(fd), true
	_, err := br.Peek(1)
	s.input.now = false
	if err == reactor.ErrAgain { //nolint:errorlint // never wrapped
		s.dropBuffer(br)
		return false
	}
	s.br, s.inputErr = br, err
	return true
}

// dropBuffer gives an empty buffer to whoever needs one next.
func (s *session) dropBuffer(br *bufio.Reader) {
	s.br = noBuffer
	br.Reset(nil)
	clientReaders.Put(br)
}
