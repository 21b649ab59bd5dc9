package http1

import (
	"sync"
	"time"
)

// idlePool keeps unused connections, those used last first: the others grow
// old and go.
type idlePool struct {
	limit time.Duration
	max   int // per address

	mu     sync.Mutex
	conns  map[string][]*conn // oldest first
	timer  *time.Timer        // runs while there are connections
	closed bool               // nothing is kept any more
}

// take returns a connection that can be used, or nil.
func (p *idlePool) take(key string) *conn {
	for {
		p.mu.Lock()
		list := p.conns[key]
		if len(list) == 0 {
			p.mu.Unlock()
			return nil
		}
		c := list[len(list)-1]
		list[len(list)-1] = nil
		p.conns[key] = list[:len(list)-1]
		p.mu.Unlock()
		if time.Since(c.since) < p.limit && c.counting.quiet() {
			c.reused = true
			return c
		}
		_ = c.counting.Close()
	}
}

// put keeps c for a later request, or closes it.
func (p *idlePool) put(c *conn) {
	c.since = time.Now()
	p.mu.Lock()
	if p.closed || p.limit <= 0 || len(p.conns[c.key]) >= p.max {
		p.mu.Unlock()
		_ = c.counting.Close()
		return
	}
	defer p.mu.Unlock()
	if p.conns == nil {
		p.conns = map[string][]*conn{}
	}
	p.conns[c.key] = append(p.conns[c.key], c)
	if p.timer == nil {
		p.timer = time.AfterFunc(p.limit, p.sweep)
	}
}

// sweep closes what is too old and comes back while there is something left.
func (p *idlePool) sweep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	now := time.Now()
	next := time.Duration(-1)
	for key, list := range p.conns {
		old := 0
		for old < len(list) && now.Sub(list[old].since) >= p.limit {
			_ = list[old].counting.Close()
			old++
		}
		if old == len(list) {
			delete(p.conns, key)
			continue
		}
		if old > 0 {
			p.conns[key] = append([]*conn(nil), list[old:]...)
		}
		if age := p.limit - now.Sub(list[old].since); next < 0 || age < next {
			next = age
		}
	}
	if next < 0 {
		p.timer = nil
		return
	}
	p.timer.Reset(max(next, time.Millisecond))
}

// closeAll closes what is here and keeps nothing any more.
func (p *idlePool) closeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.timer != nil {
		p.timer.Stop()
	}
	for _, list := range p.conns {
		for _, c := range list {
			_ = c.counting.Close()
		}
	}
	p.conns = nil
}
