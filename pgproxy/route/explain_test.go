//go:build cgo

package route

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestExplain(t *testing.T) {
	one := func(target Target, reason Reason, subject, sentence string) Explanation {
		return Explanation{Target: target, Reason: reason, Subject: subject, Sentence: sentence}
	}
	read := one(Standby, ReasonRead, "", "It may go to a standby: it only reads.")
	volatile := one(Primary, ReasonVolatile, "vol", "It goes to the primary: a function is VOLATILE, so it may write (vol).")
	commit := one(Any, ReasonControl, "", "It may go to any server: it runs where the transaction is.")
	several := func(e Explanation, parts ...Explanation) Explanation {
		e.Statements = parts
		return e
	}
	hinted := read
	hinted.Hint = HintStandby
	hinted.Sentence += " The comment asks for a standby, also one that is behind."
	useless := volatile
	useless.Hint = HintStandby
	useless.Sentence += " The comment that asks for a standby has no effect."
	tests := map[string]Explanation{
		"SELECT * FROM t":  read,
		"SELECT * FROM t;": read,
		"SELECT vol()":     volatile,
		"/* fournines:standby */ SELECT * FROM t":   hinted,
		"/* fournines:standby */ SELECT vol()":      useless,
		"SELECT * FROM t; ; SELECT ';', vol() -- ;": several(volatile, read, volatile),
		"SELECT * FROM t; COMMIT": several(
			one(Primary, ReasonMany, "commit", "It goes to the primary: it is several statements in one text, and not all of them are queries (commit)."), read, commit),
	}
	r := New(anything{}, Config{})
	for sql, want := range tests {
		if diff := cmp.Diff(want, r.Explain([]byte(sql))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", sql, diff)
		}
	}
}

// TestVerdictsAreBounded fills the cache many times over; what is asked for all
// the time stays.
func TestVerdictsAreBounded(t *testing.T) {
	const limit = 64
	c := newVerdicts(limit)
	hot := []byte("hot")
	c.put(string(hot), &verdict{version: 1})
	for i := range 100 * limit {
		c.put(string([]byte{byte(i), byte(i >> 8), byte(i >> 16)}), &verdict{version: 1})
		if c.get(hot, 1) == nil {
			t.Fatalf("forgotten after %d others", i+1)
		}
	}
	n := 0
	for _, s := range c.shards {
		n += len(s.recent) + len(s.old)
	}
	if n > limit {
		t.Errorf("%d verdicts, want at most %d", n, limit)
	}
	if c.get(hot, 2) != nil {
		t.Error("a verdict of another version was given")
	}
}
