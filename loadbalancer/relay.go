package loadbalancer

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// keepAlive notices an idle peer that is gone within about 8 s.
func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: time.Second, Count: 3}
}

// relay is one connection from a client to a backend.
type relay struct {
	client, upstream *net.TCPConn
	aborted          atomic.Bool

	// When a side was first seen without an acknowledgement for what it was
	// sent again; only the watch of the service uses them.
	clientStalled, upstreamStalled time.Time
}

// run copies both ways until both have ended. Each end of a stream is passed
// on by itself, so that half-closed connections work; an error in one
// direction resets both sides.
func (r *relay) run() (in, out int64) {
	var group sync.WaitGroup
	group.Go(func() { in = r.copy(r.upstream, r.client) })
	out = r.copy(r.client, r.upstream)
	group.Wait()
	_ = r.client.Close()
	_ = r.upstream.Close()
	return in, out
}

func (r *relay) copy(dst, src *net.TCPConn) int64 {
	// Between two TCP connections io.Copy is splice(2) on Linux: the bytes do
	// not come to this process.
	n, err := io.Copy(dst, src)
	if err == nil {
		err = dst.CloseWrite()
	}
	if err != nil {
		r.abort()
	}
	return n
}

// abort resets both sides. It tells whether this call did so.
func (r *relay) abort() bool {
	if r.aborted.Swap(true) {
		return false
	}
	reset(r.client)
	reset(r.upstream)
	return true
}

// reset closes a connection so that the peer gets an error, not an end.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// stalled tells whether a side has not acknowledged anything for longer than
// limit although it was sent data again. again tells whether the backend is one
// that is being sent data again, quiet for how long nothing has come from it. TCP_USER_TIMEOUT would do the same in
// the kernel, but it also cuts peers that are well and only do not read for a
// while, such as a client that works on each row of a large result.
func (r *relay) stalled(now time.Time, limit time.Duration) (stalled, again bool, quiet time.Duration) {
	late := func(again bool, since *time.Time) bool {
		if !again {
			*since = time.Time{}
			return false
		}
		if since.IsZero() {
			*since = now
		}
		return now.Sub(*since) >= limit
	}
	client, _ := retransmitting(r.client)
	stalled = late(client, &r.clientStalled)
	again, quiet = retransmitting(r.upstream)
	return late(again, &r.upstreamStalled) || stalled, again, quiet
}
