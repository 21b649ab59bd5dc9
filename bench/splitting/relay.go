//go:build linux

package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// relay is the way between two zones: a TCP relay that delivers every byte half
// of delay after it came, in each direction, and that is as wide as one likes.
type relay struct {
	// delay is the round trip in nanoseconds; it may change at any time.
	delay atomic.Int64
	ln    net.Listener
	to    netip.AddrPort
	wg    sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]bool
	closed bool
}

// newRelay listens at one address and connects to another.
func newRelay(ctx context.Context, at, to netip.AddrPort) (*relay, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", at.String())
	if err != nil {
		return nil, err
	}
	r := &relay{ln: ln, to: to, conns: map[net.Conn]bool{}}
	r.wg.Go(r.accept)
	return r, nil
}

// address is where it listens.
func (r *relay) address() netip.AddrPort { return r.ln.Addr().(*net.TCPAddr).AddrPort() }

func (r *relay) accept() {
	for {
		in, err := r.ln.Accept()
		if err != nil {
			return
		}
		r.wg.Go(func() {
			out, err := net.DialTimeout("tcp", r.to.String(), 10*time.Second)
			if err != nil {
				_ = in.Close()
				return
			}
			if !r.keep(in, out) {
				return
			}
			r.wg.Go(func() { r.pass(in, out) })
			r.pass(out, in)
		})
	}
}

// keep remembers connections for close; false means that it came too late.
func (r *relay) keep(conns ...net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range conns {
		if r.closed {
			_ = c.Close()
			continue
		}
		r.conns[c] = true
	}
	return !r.closed
}

// parcel is what one read gave, with the time at which it may be delivered.
type parcel struct {
	bytes []byte
	due   time.Time
}

// pass takes bytes from one side to the other until either ends, and closes both.
func (r *relay) pass(from, to net.Conn) {
	way := make(chan parcel, 1024)
	r.wg.Go(func() {
		defer close(way)
		for {
			b := make([]byte, 32<<10)
			n, err := from.Read(b)
			if n > 0 {
				way <- parcel{b[:n], time.Now().Add(time.Duration(r.delay.Load()) / 2)}
			}
			if err != nil {
				return
			}
		}
	})
	var err error
	for p := range way {
		if err != nil {
			continue // to its end, so that the reader is not stuck
		}
		if wait := time.Until(p.due); wait > 0 {
			time.Sleep(wait)
		}
		if _, err = to.Write(p.bytes); err != nil {
			_ = from.Close()
		}
	}
	_, _ = from.Close(), to.Close()
	r.mu.Lock()
	delete(r.conns, from)
	r.mu.Unlock()
}

// close ends the relay and all its connections.
func (r *relay) close() error {
	err := r.ln.Close()
	r.mu.Lock()
	r.closed = true
	for c := range r.conns {
		if e := c.Close(); e != nil && !errors.Is(e, net.ErrClosed) && !errors.Is(e, io.EOF) {
			err = errors.Join(err, e)
		}
	}
	r.mu.Unlock()
	r.wg.Wait()
	return err
}
