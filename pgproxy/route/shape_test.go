//go:build cgo

package route

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func keyOf(sql string) string {
	s, _ := shapeOf(nil, []byte(sql), maxShape)
	return string(s.key)
}

func TestShape(t *testing.T) {
	same := [][]string{
		{"SELECT 1", "SELECT 2", "SELECT 123456789", "SELECT/**/ 3", "SELECT 1 -- a\n", "SELECT 1 --", "SELECT 1 /* b /* c */ */"},
		{"SELECT 1.5", "SELECT .5", "SELECT 5.", "SELECT 1e9", "SELECT 1.5E-9", "SELECT 1234567890"},
		{"SELECT 'a'", "SELECT ''", "SELECT 'it''s; -- /*'", "SELECT E'\\''", "SELECT $$x$$", "SELECT $a$ $$ ' $a$", "SELECT 'a'\n'b'", "SELECT E'a' -- b'\n'\\''"},
		{"SELECT * FROM t WHERE a IN (1)", "SELECT * FROM t WHERE a IN (1, 2)", "SELECT * FROM t WHERE a IN (1,2,3,\n4)"},
		{"SELECT f('a'::uuid)", "SELECT f('a'::uuid, 'b'::uuid)"},
		{"SELECT ARRAY[-1]", "SELECT ARRAY[-1, -2]"},
	}
	keys := make(map[string]string)
	for _, texts := range same {
		// The number of blanks may differ where comments were.
		want := strings.Join(strings.Fields(keyOf(texts[0])), " ")
		for _, text := range texts {
			if got := strings.Join(strings.Fields(keyOf(text)), " "); got != want || got == "" {
				t.Errorf("%q has the shape %q, %q has %q", text, got, texts[0], want)
			}
		}
		if other, ok := keys[want]; ok {
			t.Errorf("%q and %q have one shape", texts[0], other)
		}
		keys[want] = texts[0]
	}
	different := []string{
		"SELECT a", "SELECT A", "SELECT \"a\"", "SELECT \"A\"", "SELECT a.b", "SELECT a .5", "SELECT $1", "SELECT $2", "SELECT 1", "SELECT 1.5", "SELECT 'a'",
		"SELECT - 1", "SELECT U&'a'", "SELECT U&'b'", "SELECT N'a'", "SELECT B'1'", "SELECT X'1'", "SELECT 0x1F", "SELECT 1_000", "SELECT 1a", "SELECT a, a", "SELECT a, 1", "SELECT 1, a",
		"SELECT (1), 2", "SELECT ((1))", "SELECT 1; SELECT 1", "SELECT 1 /* fournines:primary */", "SELECT 1 /* fournines:standby */", "SELECT 'a' 'b'", "SELECT 'a'::x, 'a'::y",
		"SELECT f(1, 'a')", "SELECT f('a', 1)", "SELECT U&\"a\"", "SELECT $a", "SELECT 'a", "SELECT '\\' , 'b", "SELECT E'\\' , 'b",
	}
	seen := make(map[string]string)
	for _, text := range different {
		key := keyOf(text)
		if other, ok := seen[key]; ok || key == "" {
			t.Errorf("%q has the shape %q, like %q", text, key, other)
		}
		seen[key] = text
	}
	for _, text := range []string{"INSERT INTO t VALUES (1)", "BEGIN", "SELECT 1; COMMIT", "SELECT " + strings.Repeat("a,", maxShape) + "a"} {
		if key := keyOf(text); key != "" {
			t.Errorf("%.30q has the shape %.30q, want none", text, key)
		}
	}
	if key := keyOf("SELECT a IN (" + strings.Repeat("'0123456789',", 100_000) + "'')"); len(key) > 30 {
		t.Errorf("a long list has a shape of %d bytes", len(key))
	}
}

// TestDeepText gives the parser the deepest trees that a text of the greatest
// length can hold: its C code does not check its stack.
func TestDeepText(t *testing.T) {
	r := New(anything{}, Config{})
	// Some are too deep for the parser's grammar or for the decoder of its tree.
	fine := map[Reason]bool{ReasonUnparsed: true, ReasonNoTable: true, ReasonRead: true}
	for _, part := range []string{"a+", "- ", "(", "NOT ", "f(", "SELECT 1 UNION ", "CASE WHEN ", "(SELECT ", "ARRAY[", "a ISNULL AND "} {
		text := "SELECT " + strings.Repeat(part, (maxShape-20)/len(part)) + "a"
		if d := r.Route([]byte(text)); !fine[d.Reason] {
			t.Errorf("%s...: %+v", part, d)
		}
	}
	for _, part := range []string{" ISNULL", "::x", "[a]", ".x", " UNION SELECT 1", " COLLATE x", " JOIN t ON a", "+a", "(a)"} {
		text := "SELECT a" + strings.Repeat(part, (maxShape-20)/len(part))
		if d := r.Route([]byte(text)); !fine[d.Reason] {
			t.Errorf("...%s: %+v", part, d)
		}
	}
}

// anything is a catalog in which all names are good but those that begin with
// "v".
type anything struct{}

func (anything) Function(_, name string) Volatility {
	if strings.HasPrefix(name, "v") {
		return Volatile
	}
	return Immutable
}
func (anything) Operator(_, name string) Volatility {
	if name == "###" {
		return Volatile
	}
	return Immutable
}
func (anything) SafeType(_, name string) bool { return !strings.HasPrefix(name, "v") }
func (anything) Relation(_, name string) Relation {
	if strings.HasPrefix(name, "v") {
		return Relation{Kind: Unreadable}
	}
	return Relation{Kind: Table}
}
func (anything) Version() uint64 { return 1 }
func (anything) Missed()         {}

// FuzzRoute holds the router against PostgreSQL's parser: the verdict on a
// shape is that on the text itself, and on the text with other constants.
func FuzzRoute(f *testing.F) {
	for _, s := range statements {
		f.Add([]byte(s.sql), uint8(3))
	}
	f.Fuzz(func(t *testing.T, sql []byte, seed uint8) {
		r := New(anything{}, Config{Verdicts: 16})
		first := r.Route(sql)
		if again := r.Route(sql); again != first {
			t.Fatalf("%q: first %+v, then %+v", sql, first, again)
		}
		r.Explain(sql)
		if bytes.IndexByte(sql, 0) >= 0 {
			return
		}
		s, _ := shapeOf(nil, sql, maxShape)
		if len(s.key) == 0 {
			return
		}
		shaped := worst(judgeText(anything{}, canonicalText(s.key)))
		agree(t, sql, shaped, sql)
		other := otherConstants(sql, seed)
		if o, _ := shapeOf(nil, other, maxShape); bytes.Equal(o.key, s.key) {
			agree(t, sql, shaped, other)
		}
	})
}

// agree fails when a text is judged otherwise than its shape. A text that the
// parser refuses may have a shape that it takes: the server refuses it too.
func agree(t *testing.T, sql []byte, shaped verdict, text []byte) {
	t.Helper()
	own := worst(judgeText(anything{}, string(text)))
	if shaped.reason == ReasonUtility && own.target != Primary {
		return // COPY t TO '' looks like COPY t TO STDOUT, its shape like COPY t TO 'x'
	}
	if own.reason != ReasonUnparsed && (own.target != shaped.target || own.reason != shaped.reason) {
		t.Fatalf("%q: shape of %q is %s %s %q, itself %s %s %q", text, sql, shaped.target, shaped.reason, shaped.subject, own.target, own.reason, own.subject)
	}
}

// otherConstants replaces the constants of a text.
func otherConstants(sql []byte, seed uint8) []byte {
	stringsLike := []string{"''", "'a'", "'it''s'", "$$ ' $$", "$q$ vol() $q$", "E'\\''", "'\\'", "'; DELETE FROM t; --'", "'/*'", "'\"'", "'x' \n 'y'"}
	numbersLike := []string{"0", "7", "999999999"}
	var out []byte
	s := scanner{sql: sql}
	from := 0
	for i := int(seed); ; i++ {
		kind, _ := s.next()
		if kind == 0 {
			return append(out, sql[from:]...)
		}
		if kind != 'l' {
			continue
		}
		start := s.pos - len(s.constant)
		out = append(out, sql[from:start]...)
		if classes[sql[start]] == digit {
			out = append(out, numbersLike[i%len(numbersLike)]...)
		} else {
			out = append(out, stringsLike[i%len(stringsLike)]...)
		}
		from = s.pos
	}
}

// knownShape is a statement of 700 bytes as SQLAlchemy and psycopg2 write it,
// with other constants each time.
func knownShape(n int) []byte {
	sql := fmt.Sprintf("SELECT messages.id AS messages_id, messages.app_id AS messages_app_id, messages.model_provider AS messages_model_provider, "+
		"messages.model_id AS messages_model_id, messages.conversation_id AS messages_conversation_id, messages.inputs AS messages_inputs, "+
		"messages.query AS messages_query, messages.message AS messages_message, messages.answer AS messages_answer, messages.status AS messages_status, "+
		"messages.created_at AS messages_created_at \nFROM messages \nWHERE messages.conversation_id = '%08x-58cc-4372-a567-0e02b2c3d479'::uuid AND messages.status IN ('normal', 'paused') "+
		"AND messages.created_at > '2024-06-0%dT10:00:00'::timestamp AND messages.message_tokens > %d ORDER BY messages.created_at DESC \n LIMIT %d", n, n%9+1, n, n%50+1)
	return []byte(sql)
}

func TestRouteKnownShapeDoesNotAllocate(t *testing.T) {
	r := New(anything{}, Config{})
	texts := [][]byte{knownShape(1), knownShape(2), knownShape(3_000)}
	if d := r.Route(knownShape(0)); d.Target != Standby {
		t.Fatalf("got %+v", d)
	}
	i := 0
	// One in a hundred may come from a buffer that the collector took away.
	if n := testing.AllocsPerRun(1000, func() {
		i++
		r.Route(texts[i%len(texts)])
	}); n > 0.5 && !raceEnabled {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRouteKnownShape(b *testing.B) {
	r := New(anything{}, Config{})
	texts := make([][]byte, 64)
	for i := range texts {
		texts[i] = knownShape(i)
	}
	b.SetBytes(int64(len(texts[0])))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if d := r.Route(texts[i%len(texts)]); d.Target != Standby {
			b.Fatal(d)
		}
	}
}

func BenchmarkRouteNewShape(b *testing.B) {
	r := New(anything{}, Config{Verdicts: 16})
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if d := r.Route(fmt.Appendf(nil, "%s, %c%d", knownShape(i), 'a', i)); d.Reason == ReasonRead {
			b.Fatal(d)
		}
	}
}
