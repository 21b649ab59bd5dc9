package pgproxy

import (
	"container/list"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Bounds of the memory of failed logins.
const (
	// maxGuessers addresses are remembered; the one that was silent longest goes.
	maxGuessers = 10_000
	// maxTrusted users of one address are remembered.
	maxTrusted = 32
	// guessMemory is how long a failure, or a success, counts.
	guessMemory = 10 * time.Minute
	// freeGuesses is how often somebody may mistype before the next attempts
	// from the address wait in line.
	freeGuesses = 3
)

// guesses slows down who tries passwords. Every failure from an address doubles
// the time until its answer. After a few, attempts from there are checked one
// after another with that pause between them, so that it does not help to open
// many connections or to leave before the answer. A user who has logged in from
// the address of late does not wait in line: many clients may come from one
// address, a balancer's for instance.
type guesses struct {
	mu     sync.Mutex
	byAddr map[netip.Addr]*list.Element // of *guesser
	recent list.List                    // the latest first
}

type guesser struct {
	addr     netip.Addr
	failures int
	last     time.Time // of a failure
	next     time.Time // when the next attempt may be checked
	trusted  map[string]time.Time
}

// guessAddr is the address that counts: of IPv6 the network of one customer.
func guessAddr(a net.Addr) netip.Addr {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	addr := tcp.AddrPort().Addr().Unmap()
	if addr.Is6() {
		if p, err := addr.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return addr
}

// of returns the entry of an address. mu is held.
func (g *guesses) of(addr netip.Addr, now time.Time) *guesser {
	if el := g.byAddr[addr]; el != nil {
		g.recent.MoveToFront(el)
		x := el.Value.(*guesser)
		if now.Sub(x.last) > guessMemory {
			x.failures = 0
		}
		return x
	}
	if g.byAddr == nil {
		g.byAddr = make(map[netip.Addr]*list.Element)
	}
	if len(g.byAddr) >= maxGuessers {
		oldest := g.recent.Back()
		delete(g.byAddr, g.recent.Remove(oldest).(*guesser).addr)
	}
	x := &guesser{addr: addr, trusted: make(map[string]time.Time)}
	g.byAddr[addr] = g.recent.PushFront(x)
	return x
}

// guessPause is the time that so many failures cost.
func guessPause(failures int, base, limit time.Duration) time.Duration {
	d := base
	for range failures - 1 {
		if d >= limit {
			break
		}
		d *= 2
	}
	return min(d, limit)
}

// admit says how long an attempt has to wait until its password is checked, and
// reserves that moment. ok is false when it would have to wait longer than
// patience: then it is refused.
func (g *guesses) admit(addr netip.Addr, user string, l Limits, patience time.Duration, now time.Time) (wait time.Duration, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	x := g.of(addr, now)
	if x.failures < freeGuesses || now.Sub(x.trusted[user]) < guessMemory {
		return 0, true
	}
	wait = max(0, x.next.Sub(now))
	if wait > patience {
		return 0, false
	}
	x.next = now.Add(wait + guessPause(x.failures, l.AuthFailureDelay, l.AuthFailureMaxDelay))
	return wait, true
}

// failed counts a failure and says how long its answer has to wait.
func (g *guesses) failed(addr netip.Addr, l Limits, now time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	x := g.of(addr, now)
	x.failures, x.last = x.failures+1, now
	d := guessPause(x.failures, l.AuthFailureDelay, l.AuthFailureMaxDelay)
	if next := now.Add(d); next.After(x.next) {
		x.next = next
	}
	return d
}

// succeeded remembers that a user belongs to an address.
func (g *guesses) succeeded(addr netip.Addr, user string, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	x := g.of(addr, now)
	if len(x.trusted) >= maxTrusted && x.trusted[user].IsZero() {
		clear(x.trusted)
	}
	x.trusted[user] = now
}
