package pgproxy

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

func TestGuessesSlowDown(t *testing.T) {
	l := Limits{AuthFailureDelay: time.Second, AuthFailureMaxDelay: 10 * time.Second}
	const patience = 15 * time.Second
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	now := time.Unix(1e9, 0)
	var g guesses
	admit := func(addr netip.Addr, user string) (time.Duration, bool) { return g.admit(addr, user, l, patience, now) }

	g.succeeded(a, "known", now)
	for i, want := range []time.Duration{1, 2, 4, 8, 10, 10} {
		if got := g.failed(a, l, now); got != want*time.Second {
			t.Errorf("failure %d is answered after %v, want %v", i+1, got, want*time.Second)
		}
	}
	// The next attempts wait in line, however many come at once.
	for i, want := range []time.Duration{10, -1, -1} {
		wait, ok := admit(a, "root")
		if ok != (want >= 0) || ok && wait != want*time.Second {
			t.Errorf("attempt %d waits %v %v, want %v", i+1, wait, ok, want*time.Second)
		}
	}
	if wait, ok := admit(a, "known"); wait != 0 || !ok {
		t.Errorf("a user who belongs there waits %v %v", wait, ok)
	}
	if wait, ok := admit(b, "root"); wait != 0 || !ok {
		t.Errorf("another address waits %v %v", wait, ok)
	}
	for range freeGuesses - 1 {
		g.failed(b, l, now)
	}
	if wait, ok := admit(b, "root"); wait != 0 || !ok {
		t.Errorf("after %d failures an attempt waits %v %v", freeGuesses-1, wait, ok)
	}
	// Time heals.
	now = now.Add(guessMemory + time.Minute)
	if wait, ok := admit(a, "root"); wait != 0 || !ok {
		t.Errorf("after %v an attempt waits %v %v", guessMemory, wait, ok)
	}
	if got := g.failed(a, l, now); got != time.Second {
		t.Errorf("the first failure after that is answered after %v", got)
	}
}

func TestGuessesAreBounded(t *testing.T) {
	var g guesses
	l := Limits{AuthFailureDelay: time.Second, AuthFailureMaxDelay: time.Second}
	now := time.Unix(1e9, 0)
	first := netip.AddrFrom4([4]byte{10, 0, 0, 0})
	for i := range 2 * maxGuessers {
		g.failed(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), l, now)
	}
	for i := range 10 * maxTrusted {
		g.succeeded(first, string(rune('a'+i)), now)
	}
	if len(g.byAddr) != maxGuessers || g.recent.Len() != maxGuessers {
		t.Errorf("%d addresses and %d entries, want %d", len(g.byAddr), g.recent.Len(), maxGuessers)
	}
	if n := len(g.byAddr[first].Value.(*guesser).trusted); n > maxTrusted {
		t.Errorf("%d users of one address, want at most %d", n, maxTrusted)
	}
}

func TestGuessAddr(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "::ffff:192.0.2.7": "192.0.2.7", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::", "::1": "::",
	} {
		if got := guessAddr(&net.TCPAddr{IP: net.ParseIP(in)}); got != netip.MustParseAddr(want) {
			t.Errorf("%s counts as %s, want %s", in, got, want)
		}
	}
}
