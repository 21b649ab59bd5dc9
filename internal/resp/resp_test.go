package resp_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"fournines/internal/resp"
)

// readAll returns the arguments of every request in src.
func readAll(src io.Reader, lim resp.Limits) ([][]string, error) {
	rd := resp.NewRequestReader(src, lim)
	var all [][]string
	var cmd resp.Command
	for {
		ok, err := rd.Next(&cmd)
		if err != nil {
			return all, err
		}
		if ok {
			var args []string
			for _, a := range cmd.Args {
				args = append(args, string(a))
			}
			all = append(all, args)
			if cmd.Raw != nil && !bytes.Equal(cmd.Raw, resp.AppendCommand(nil, cmd.Args...)) {
				return all, errors.New("raw bytes differ from the arguments")
			}
			continue
		}
		if err := rd.Fill(); err != nil {
			if errors.Is(err, io.EOF) && rd.Buffered() == 0 {
				return all, nil
			}
			return all, err
		}
	}
}

const sample = "*1\r\n$4\r\nPING\r\n" +
	"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$6\r\na\r\nb\x00c\r\n" +
	"\r\n*0\r\n*-1\r\n" +
	"set key \"a b\\x41\\n\" 'c\\'d'\r\n" +
	"*2\r\n$3\r\nGET\r\n$0\r\n\r\nPING\n"

func TestRequestsSplitAtEveryByte(t *testing.T) {
	want := [][]string{{"PING"}, {"SET", "k", "a\r\nb\x00c"}, {"set", "key", "a bA\n", "c'd"}, {"GET", ""}, {"PING"}}
	for i := range len(sample) {
		src := io.MultiReader(strings.NewReader(sample[:i]), strings.NewReader(sample[i:]))
		got, err := readAll(src, resp.Limits{})
		if err != nil {
			t.Fatalf("split at %d: %v", i, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("split at %d: %s", i, d)
		}
	}
	got, err := readAll(iotest.OneByteReader(strings.NewReader(sample)), resp.Limits{})
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Fatalf("byte by byte: %v %s", err, d)
	}
}

func TestBadRequests(t *testing.T) {
	lim := resp.Limits{MaxBulk: 100, MaxArgs: 10, MaxRequest: 300, MaxInline: 200}
	tests := map[string]struct{ in, want string }{
		"giant bulk":        {"*1\r\n$99999999999\r\n", "invalid bulk length"},
		"bulk over limit":   {"*1\r\n$101\r\n", "invalid bulk length"},
		"negative bulk":     {"*1\r\n$-1\r\n", "invalid bulk length"},
		"leading zero":      {"*1\r\n$04\r\nPING\r\n", "invalid bulk length"},
		"plus sign":         {"*+1\r\n$4\r\nPING\r\n", "invalid multibulk length"},
		"too many args":     {"*11\r\n", "invalid multibulk length"},
		"not a bulk":        {"*1\r\n*1\r\n$4\r\nPING\r\n", "expected '$', got '*'"},
		"bad end":           {"*1\r\n$4\r\nPINGxx", "without line end"},
		"long inline":       {strings.Repeat("a", 500), "too big inline"},
		"long header":       {"*" + strings.Repeat("1", 500), "too big inline"},
		"quotes":            {"set \"a\r\n", "unbalanced quotes"},
		"total over limit":  {"*4\r\n" + strings.Repeat("$100\r\n"+strings.Repeat("x", 100)+"\r\n", 4), "too big request"},
		"header without CR": {"*1\n$4\r\nPING\r\n", "invalid multibulk length"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := readAll(strings.NewReader(tt.in), lim)
			var perr resp.ProtocolError
			if !errors.As(err, &perr) || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want a protocol error with %q", err, tt.want)
			}
		})
	}
}

// endless claims a large argument and never delivers it whole.
type endless struct{ sent int }

func (e *endless) Read(p []byte) (int, error) {
	e.sent += len(p)
	return len(p), nil
}

func TestMemoryFollowsWhatArrived(t *testing.T) {
	rd := resp.NewRequestReader(strings.NewReader("*2\r\n$3\r\nSET\r\n$60000000\r\nabc"), resp.Limits{})
	if err := rd.Fill(); err != nil {
		t.Fatal(err)
	}
	got := testing.AllocsPerRun(1, func() {
		var cmd resp.Command
		if ok, err := rd.Next(&cmd); ok || err != nil {
			t.Fatal(ok, err)
		}
	})
	if got > 4 {
		t.Fatalf("%v allocations for an announced length", got)
	}
	lim := resp.Limits{MaxRequest: 1 << 16}
	_, err := readAll(io.MultiReader(strings.NewReader("*3\r\n$3\r\nSET\r\n$65000\r\n"), &endless{}), lim)
	if err == nil {
		t.Fatal("endless request accepted")
	}
}

const replies = "+OK\r\n-ERR x\r\n:12\r\n$-1\r\n$3\r\na\r\n\r\n*-1\r\n*0\r\n*2\r\n*1\r\n:1\r\n$1\r\nx\r\n" +
	"%1\r\n+a\r\n~2\r\n#t\r\n_\r\n|1\r\n+k\r\n:1\r\n,1.5\r\n(123\r\n=5\r\ntxt:a\r\n>2\r\n+m\r\n!3\r\nERR\r\n"

func TestRepliesSplitAtEveryByte(t *testing.T) {
	for i := range len(replies) {
		rd := resp.NewReplyReader(io.MultiReader(strings.NewReader(replies[:i]), strings.NewReader(replies[i:])), 0)
		var got []byte
		for n := range 13 {
			before := len(got)
			var err error
			if got, err = rd.Append(got); err != nil {
				t.Fatalf("split at %d, reply %d: %v", i, n, err)
			}
			v, rest, err := resp.Parse(got[before:])
			if err != nil || len(rest) != 0 {
				t.Fatalf("parse %q: %v, rest %q", got[before:], err, rest)
			}
			if got[before] != resp.Attribute {
				if again := resp.AppendValue(nil, v); !bytes.Equal(again, got[before:]) {
					t.Fatalf("round trip of %q gave %q", got[before:], again)
				}
			}
		}
		if string(got) != replies {
			t.Fatalf("split at %d: got %q", i, got)
		}
	}
}

func TestDeepRepliesAreRelayedNotDecoded(t *testing.T) {
	deep := strings.Repeat("*1\r\n", 100000) + ":1\r\n"
	raw, err := resp.NewReplyReader(strings.NewReader(deep), 0).Append(nil)
	if err != nil || string(raw) != deep {
		t.Fatalf("relay: %v", err)
	}
	if _, _, err := resp.Parse(raw); err == nil {
		t.Fatal("a reply nested 100000 deep was decoded")
	}
}

func TestReplyLimit(t *testing.T) {
	in := "*3\r\n$1\r\na\r\n$5000\r\n" + strings.Repeat("x", 5000) + "\r\n:1\r\n+next\r\n"
	rd := resp.NewReplyReader(strings.NewReader(in), 1000)
	if got, err := rd.Append([]byte("kept")); !errors.Is(err, resp.ErrReplyTooLarge) || string(got) != "kept" {
		t.Fatalf("got %q, %v", got, err)
	}
	if got, err := rd.Append(nil); err != nil || string(got) != "+next\r\n" {
		t.Fatalf("after a dropped reply: %q, %v", got, err)
	}
}

func TestErrorsCannotForgeReplies(t *testing.T) {
	got := string(resp.AppendError(nil, "ERR unknown 'a\r\n+OK'"))
	if want := "-ERR unknown 'a  +OK'\r\n"; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	in := bytes.Repeat([]byte("*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$5\r\nvalue\r\n"), 16)
	src := bytes.NewReader(in)
	rd := resp.NewRequestReader(src, resp.Limits{})
	var cmd resp.Command
	if got := testing.AllocsPerRun(100, func() {
		src.Reset(in)
		for n := 0; n < 16; {
			ok, err := rd.Next(&cmd)
			if err != nil {
				t.Fatal(err)
			}
			if ok {
				n++
			} else if err := rd.Fill(); err != nil {
				t.Fatal(err)
			}
		}
	}); got != 0 {
		t.Fatalf("%v allocations per 16 requests", got)
	}
}

func FuzzRequests(f *testing.F) {
	f.Add([]byte(sample), 3)
	f.Add([]byte("*2\r\n$3\r\nGET\r\n$1\r\n"), 1)
	f.Fuzz(func(t *testing.T, in []byte, cut int) {
		lim := resp.Limits{MaxBulk: 1 << 12, MaxArgs: 64, MaxRequest: 1 << 14, MaxInline: 1 << 12}
		whole, errWhole := readAll(bytes.NewReader(in), lim)
		if cut < 0 || cut > len(in) {
			cut = len(in) / 2
		}
		parts, errParts := readAll(io.MultiReader(bytes.NewReader(in[:cut]), bytes.NewReader(in[cut:])), lim)
		if d := cmp.Diff(whole, parts); d != "" {
			t.Fatalf("a cut at %d changes the requests: %s", cut, d)
		}
		if (errWhole == nil) != (errParts == nil) {
			t.Fatalf("a cut at %d changes the error: %v, %v", cut, errWhole, errParts)
		}
	})
}

func FuzzReplies(f *testing.F) {
	f.Add([]byte(replies))
	f.Fuzz(func(t *testing.T, in []byte) {
		raw, err := resp.NewReplyReader(bytes.NewReader(in), 1<<16).Append(nil)
		if err != nil {
			return
		}
		v, rest, err := resp.Parse(raw)
		if err != nil {
			return
		}
		if len(rest) != 0 {
			t.Fatalf("%d bytes left", len(rest))
		}
		if again, _, err := resp.Parse(resp.AppendValue(nil, v)); err != nil || !cmp.Equal(v, again) {
			t.Fatalf("round trip of %q: %v", raw, err)
		}
	})
}
