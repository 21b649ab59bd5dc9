package reactor

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
)

// Direct returns conn with reads and writes that the scheduler hears of only
// when they have to wait: in between they are plain system calls, see ReadNow.
// Deadlines and Close work as before. What is no *net.TCPConn is returned as it
// is.
func Direct(conn net.Conn) net.Conn {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return conn
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return conn
	}
	d := &direct{Conn: tcp, raw: raw}
	d.r.step, d.w.step = d.r.read, d.w.write
	return d
}

// direct is a TCP connection.
type direct struct {
	net.Conn // not *net.TCPConn: its ReadFrom and WriteTo would go another way
	raw      syscall.RawConn
	r, w     transfer
}

// transfer is a read or a write under way. Its fields are here and not on a
// stack because the closure that gets the descriptor would move them to the
// heap each time.
type transfer struct {
	mu   sync.Mutex
	step func(fd uintptr) bool
	p    []byte
	n    int
	err  error
}

func (t *transfer) read(fd uintptr) bool {
	t.n, t.err = ReadNow(int(fd), t.p)
	return t.err != ErrAgain //nolint:errorlint // never wrapped
}

func (t *transfer) write(fd uintptr) bool {
	var n int
	n, t.err = WriteNow(int(fd), t.p[t.n:])
	t.n += n
	return t.err != nil || t.n == len(t.p)
}

// Read implements net.Conn.
func (d *direct) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	t := &d.r
	t.mu.Lock()
	defer t.mu.Unlock()
	t.p, t.n, t.err = p, 0, nil
	if err := d.raw.Read(t.step); err != nil {
		t.err = err
	}
	return t.end(d, "read")
}

// Write implements net.Conn.
func (d *direct) Write(p []byte) (int, error) {
	t := &d.w
	t.mu.Lock()
	defer t.mu.Unlock()
	t.p, t.n, t.err = p, 0, nil
	if err := d.raw.Write(t.step); err != nil {
		t.err = err
	}
	return t.end(d, "write")
}

// end returns what has become of the transfer, with errors as package net words
// them.
func (t *transfer) end(d *direct, op string) (int, error) {
	t.p = nil
	if t.err == nil || t.err == io.EOF { //nolint:errorlint // never wrapped
		return t.n, t.err
	}
	err := t.err
	var already *net.OpError
	if errors.As(err, &already) { // of the descriptor: closed, or its time is over
		err = already.Err
	}
	return t.n, &net.OpError{Op: op, Net: "tcp", Source: d.LocalAddr(), Addr: d.RemoteAddr(), Err: err}
}

// OnReadable calls f, which returns false when ReadNow on the descriptor found
// nothing to read, and calls it again each time that there may be something. So
// whoever waits needs no memory to read into until something has come. It
// returns an error when the connection is closed or the time for reading is over.
// ok is false, and f is not called, when conn does not come from Direct.
func OnReadable(conn net.Conn, f func(fd uintptr) bool) (ok bool, err error) {
	d, ok := conn.(*direct)
	if !ok {
		return false, nil
	}
	d.r.mu.Lock()
	defer d.r.mu.Unlock()
	return true, d.raw.Read(f)
}

// Descriptor returns the descriptor of a connection that Direct has made; ok is
// false for others, and when it is closed. It is good until the connection is
// closed.
func Descriptor(conn net.Conn) (fd int, ok bool) {
	d, ok := conn.(*direct)
	if !ok || d.raw.Control(func(u uintptr) { fd = int(u) }) != nil {
		return 0, false
	}
	return fd, true
}

// NetConn returns the connection below, as that of crypto/tls does.
func (d *direct) NetConn() net.Conn { return d.Conn }
