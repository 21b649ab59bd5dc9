package redisproxy

import (
	"net"
	"sync"
	"time"
)

// outbox is the output of a subscribed client. Messages are appended by the
// hub, which must never wait for a slow client; one goroutine writes.
type outbox struct {
	conn    net.Conn
	timeout time.Duration
	limit   int
	cut     func()

	mu     sync.Mutex
	cond   *sync.Cond
	buf    []byte
	ended  bool
	writer sync.WaitGroup
}

func newOutbox(conn net.Conn, timeout time.Duration, limit int, cut func()) *outbox {
	b := &outbox{conn: conn, timeout: timeout, limit: limit, cut: cut}
	b.cond = sync.NewCond(&b.mu)
	b.writer.Go(b.write)
	return b
}

// append queues bytes; false means that the client is cut off.
func (b *outbox) append(data []byte) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.appendLocked(data)
}

func (b *outbox) appendLocked(data []byte) bool {
	if b.ended {
		return false
	}
	if len(b.buf)+len(data) > b.limit {
		b.ended = true
		b.cut()
		_ = b.conn.Close()
		b.cond.Signal()
		return false
	}
	b.buf = append(b.buf, data...)
	b.cond.Signal()
	return true
}

func (b *outbox) write() {
	var spare []byte
	for {
		b.mu.Lock()
		for len(b.buf) == 0 && !b.ended {
			b.cond.Wait()
		}
		out := b.buf
		b.buf = spare[:0]
		ended := b.ended
		b.mu.Unlock()
		if len(out) > 0 {
			_ = b.conn.SetWriteDeadline(time.Now().Add(b.timeout))
			if _, err := b.conn.Write(out); err != nil {
				b.mu.Lock()
				b.ended = true
				b.mu.Unlock()
				_ = b.conn.Close()
				return
			}
		}
		if ended {
			return
		}
		if spare = out; cap(spare) > 1<<20 {
			spare = nil
		}
	}
}

// close writes what is queued, unless the connection is closed, and joins
// the writer.
func (b *outbox) close() {
	b.mu.Lock()
	b.ended = true
	b.cond.Signal()
	b.mu.Unlock()
	b.writer.Wait()
}
