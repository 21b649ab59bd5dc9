package keyspace_test

import (
	"testing"

	"fournines/redisproxy/keyspace"
)

func TestSlot(t *testing.T) {
	// Values from CLUSTER KEYSLOT of Redis 7.0.
	for key, want := range map[string]int{
		"": 0, "123456789": 12739, "foo": 12182, "{foo}bar": 12182, "x{foo}{bar}": 12182, "{}foo": 9500, "foo{}{bar}": 8363,
	} {
		if got := keyspace.Slot([]byte(key)); got != want {
			t.Errorf("Slot(%q) = %d, want %d", key, got, want)
		}
	}
}

func TestDatabases(t *testing.T) {
	db := keyspace.New(1)
	stored := db.AppendKey(nil, []byte("celery"))
	if string(stored) != "{db1}:celery" || keyspace.Slot(stored) != db.Slot {
		t.Fatalf("stored as %q in slot %d", stored, db.Slot)
	}
	if key, ok := db.Strip(stored); !ok || string(key) != "celery" {
		t.Fatalf("stripped to %q, %v", key, ok)
	}
	if _, ok := keyspace.New(0).Strip(stored); ok {
		t.Fatal("database 0 shows a key of database 1")
	}
	for key, want := range map[string]bool{
		"{db1}:a": true, "{db15}:": true, "{db9}:x": true, "{db16}:a": false, "{db0}:a": false, "{db01}:a": false,
		"{db1}a": false, "{db}:a": false, "db1:a": false, "": false, "{db1": false, "{db155}:": false,
	} {
		if got := keyspace.Reserved([]byte(key)); got != want {
			t.Errorf("Reserved(%q) = %v", key, got)
		}
	}
}

func TestCursorRoundTrip(t *testing.T) {
	c := keyspace.Cursor{Shard: 2, Tag: 4711, Node: 1 << 30}
	n, ok := c.Encode()
	if !ok || n>>63 != 0 || keyspace.DecodeCursor(n) != c {
		t.Fatalf("got %+v from %d", keyspace.DecodeCursor(n), n)
	}
	if _, ok := (keyspace.Cursor{Node: 1 << 60}).Encode(); ok {
		t.Fatal("a cursor that does not fit was packed")
	}
}

func TestMatch(t *testing.T) {
	tests := []struct {
		pattern, s string
		want       bool
	}{
		{"*", "", true}, {"*", "abc", true}, {"a*c", "abc", true}, {"a*c", "abd", false}, {"a?c", "abc", true},
		{"a?c", "ac", false}, {"h[ae]llo", "hello", true}, {"h[^e]llo", "hello", false}, {"h[a-f]llo", "hello", true},
		{"h[f-a]llo", "hello", true}, {`a\*`, "a*", true}, {`a\*`, "ab", false}, {"**a**", "xxaxx", true},
		{"[a", "a", true}, {"a*b*c*d", "a1b2c3d", true}, {"", "", true}, {"", "a", false}, {"*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaa", false},
	}
	for _, tt := range tests {
		if got := keyspace.Match([]byte(tt.pattern), []byte(tt.s)); got != tt.want {
			t.Errorf("Match(%q, %q) = %v", tt.pattern, tt.s, got)
		}
	}
	if p := keyspace.EscapePattern(nil, []byte("{db1}:[*")); !keyspace.Match(p, []byte("{db1}:[*")) {
		t.Errorf("escaped pattern %q does not match itself", p)
	}
}
