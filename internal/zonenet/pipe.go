package zonenet

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// vnetHeaderLen is the length of struct virtio_net_hdr, which precedes
	// each packet: it says how the packet is to be segmented and checksummed.
	vnetHeaderLen = 10
	maxPacket     = vnetHeaderLen + 65535
	smallPacket   = 2048
	// maxQueued bounds what waits in one direction of a link, in bytes:
	// 15 ms of 2 GB/s. More is lost, like in a full switch.
	maxQueued = 32 << 20
	// maxBacklog bounds the wait for a link with a rate limit.
	maxBacklog = time.Second
	batch      = 64
)

// packet is one packet on its way. Its buffer belongs to a pool.
type packet struct {
	due  time.Duration // since the start of the clock
	buf  *[]byte       // whole buffer
	size int           // bytes in use, vnet header included
}

// buffers are the pools of packet buffers: most packets are either short
// (acknowledgements) or as long as segmentation offload makes them, and a
// short one must not hold 64 KiB while it waits.
type buffers struct{ small, large sync.Pool }

func newBuffers() *buffers {
	b := &buffers{}
	b.small.New = func() any { s := make([]byte, smallPacket); return &s }
	b.large.New = func() any { s := make([]byte, maxPacket); return &s }
	return b
}

func (b *buffers) put(p *[]byte) {
	if len(*p) == smallPacket {
		b.small.Put(p)
	} else {
		b.large.Put(p)
	}
}

// keep returns a buffer with the first n bytes of scratch, and the buffer to
// read into next: a long packet is handed over, a short one copied.
func (b *buffers) keep(scratch *[]byte, n int) (kept, next *[]byte) {
	if n > smallPacket {
		return scratch, b.large.Get().(*[]byte)
	}
	kept = b.small.Get().(*[]byte)
	copy(*kept, (*scratch)[:n])
	return kept, scratch
}

// pipe is one direction of a link: a queue in order of arrival, each packet
// with the time at which it is due. The due times never decrease, so a
// connection sees its packets in order whatever the settings are.
type pipe struct {
	link   atomic.Pointer[Link]
	clock  time.Time
	bufs   *buffers
	closed func() bool // whether one of the two zones is cut off
	write  func([]byte) error
	stats  pipeStats

	mu      sync.Mutex
	ring    []packet // power of two
	head    int
	count   int
	queued  int           // bytes
	lastDue time.Duration // of the newest packet
	busy    time.Duration // when a rate limited link has sent what it has
	wake    chan struct{}
}

type pipeStats struct {
	packets, bytes                           prometheus.Counter
	lost, dropped, cut, overflow, writeError prometheus.Counter
}

func newPipe(clock time.Time, bufs *buffers, stats pipeStats, closed func() bool, write func([]byte) error) *pipe {
	p := &pipe{
		clock: clock, bufs: bufs, closed: closed, write: write, stats: stats,
		ring: make([]packet, 256), wake: make(chan struct{}, 1),
	}
	p.link.Store(&Link{})
	return p
}

// send takes over buf, or gives it back to the pool when the packet is lost.
func (p *pipe) send(buf *[]byte, size int) {
	link := p.link.Load()
	lost := p.stats.cut
	switch {
	case p.closed():
	case link.Drop:
		lost = p.stats.dropped
	case link.Loss > 0 && rand.Float64() < link.Loss:
		lost = p.stats.lost
	case !p.enqueue(link, buf, size):
		lost = p.stats.overflow
	default:
		return
	}
	lost.Inc()
	p.bufs.put(buf)
}

func (p *pipe) enqueue(link *Link, buf *[]byte, size int) bool {
	now := time.Since(p.clock)
	due := now + time.Duration(link.Delay)
	if link.Jitter > 0 {
		due += rand.N(time.Duration(link.Jitter))
	}
	p.mu.Lock()
	if p.queued+size > maxQueued {
		p.mu.Unlock()
		return false
	}
	if link.Rate > 0 {
		p.busy = max(p.busy, now)
		if p.busy-now > maxBacklog {
			p.mu.Unlock()
			return false
		}
		p.busy += time.Duration(float64(size-vnetHeaderLen) / float64(link.Rate) * float64(time.Second))
		due += p.busy - now
	}
	due = max(due, p.lastDue)
	p.lastDue = due
	if p.count == len(p.ring) {
		p.grow()
	}
	p.ring[(p.head+p.count)&(len(p.ring)-1)] = packet{due: due, buf: buf, size: size}
	p.count++
	p.queued += size
	first := p.count == 1
	p.mu.Unlock()
	if first {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
	return true
}

func (p *pipe) grow() {
	ring := make([]packet, 2*len(p.ring))
	n := copy(ring, p.ring[p.head:])
	copy(ring[n:], p.ring[:p.head])
	p.ring, p.head = ring, 0
}

// take moves packets that are due to out. With none due it returns how long
// the first one still has; -1 means that the queue is empty.
func (p *pipe) take(out []packet) (n int, wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.count == 0 {
		return 0, -1
	}
	now := time.Since(p.clock)
	for n < len(out) && p.count > 0 {
		first := &p.ring[p.head]
		if first.due > now {
			return n, first.due - now
		}
		out[n] = *first
		*first = packet{}
		p.head = (p.head + 1) & (len(p.ring) - 1)
		p.count--
		p.queued -= out[n].size
		n++
	}
	return n, 0
}

// run delivers packets until ctx ends.
func (p *pipe) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	out := make([]packet, batch)
	for {
		n, wait := p.take(out)
		for i := range out[:n] {
			p.deliver(&out[i])
		}
		if n > 0 {
			if ctx.Err() != nil {
				return
			}
			continue
		}
		if wait < 0 {
			select {
			case <-p.wake:
			case <-ctx.Done():
				return
			}
			continue
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
	}
}

func (p *pipe) deliver(k *packet) {
	switch {
	case p.closed():
		p.stats.cut.Inc()
	default:
		if err := p.write((*k.buf)[:k.size]); err != nil {
			p.stats.writeError.Inc()
		} else {
			p.stats.packets.Inc()
			p.stats.bytes.Add(float64(k.size - vnetHeaderLen))
		}
	}
	p.bufs.put(k.buf)
	k.buf = nil
}
