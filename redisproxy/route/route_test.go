package route_test

import (
	"flag"
	"net"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fournines/internal/resp"
	"fournines/internal/servertest"
	"fournines/redisproxy/route"
)

var update = flag.Bool("update", false, "write commands-7.0.txt from the installed server")

func serverTable(t *testing.T) (*route.Table, func(args ...string) resp.Value) {
	t.Helper()
	r := servertest.NewRedis(t)
	conn, err := net.DialTimeout("tcp", r.Addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	rd := resp.NewReplyReader(conn, 0)
	do := func(args ...string) resp.Value {
		t.Helper()
		if _, err := conn.Write(resp.AppendCommandStrings(nil, args...)); err != nil {
			t.Fatal(err)
		}
		raw, err := rd.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		v, _, err := resp.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	table, err := route.ParseCommands(do("COMMAND"))
	if err != nil {
		t.Fatal(err)
	}
	return table, do
}

func TestKeysAsTheServerSeesThem(t *testing.T) {
	table, do := serverTable(t)
	if *update {
		if err := os.WriteFile("commands-7.0.txt", []byte(table.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	calls := [][]string{
		{"GET", "a"}, {"set", "a", "b", "EX", "10"}, {"MSET", "a", "1", "b", "2"}, {"MGET", "a", "b", "c"},
		{"EVAL", "return 1", "2", "a", "b", "c"}, {"EVALSHA", "x", "1", "a"}, {"FCALL", "f", "1", "a", "b"},
		{"ZUNIONSTORE", "d", "2", "a", "b", "WEIGHTS", "1", "2"}, {"ZINTER", "2", "a", "b"}, {"ZINTERCARD", "2", "a", "b"},
		{"SORT", "l", "LIMIT", "0", "1", "STORE", "d"}, {"SORT_RO", "l"}, {"GEORADIUS", "g", "1", "2", "3", "km", "STORE", "d"},
		{"XREAD", "COUNT", "1", "STREAMS", "a", "b", "0", "0"}, {"XREADGROUP", "GROUP", "streams", "c", "STREAMS", "a", ">"},
		{"BLMPOP", "1", "2", "a", "b", "LEFT"}, {"LMPOP", "2", "a", "b", "LEFT"}, {"BZMPOP", "1", "1", "a", "MIN"},
		{"BRPOP", "a", "b", "c", "1"}, {"BLMOVE", "a", "b", "LEFT", "RIGHT", "1"}, {"RENAME", "a", "b"}, {"COPY", "a", "b"},
		{"OBJECT", "ENCODING", "a"}, {"MEMORY", "USAGE", "a"}, {"XGROUP", "CREATE", "a", "g", "$"}, {"XINFO", "STREAM", "a"},
		{"BITOP", "AND", "d", "a", "b"}, {"PFMERGE", "d", "a"}, {"LCS", "a", "b"}, {"XADD", "a", "*", "f", "v"}, {"HSET", "h", "f", "v"},
		{"SMOVE", "a", "b", "m"}, {"SINTERSTORE", "d", "a", "b"}, {"ZRANGESTORE", "d", "a", "0", "1"}, {"GEOSEARCHSTORE", "d", "a", "FROMMEMBER", "m", "BYRADIUS", "1", "km"},
	}
	for name, tab := range map[string]*route.Table{"server": table, "builtin": route.Builtin()} {
		if *update && name == "builtin" {
			continue
		}
		for _, call := range calls {
			args := make([][]byte, len(call))
			for i, a := range call {
				args[i] = []byte(a)
			}
			c := tab.Lookup(args)
			if c == nil {
				t.Errorf("%s: %v is unknown", name, call)
				continue
			}
			pos, err := c.Keys(nil, args)
			if err != nil {
				t.Errorf("%s: %v: %v", name, call, err)
				continue
			}
			var got, want []string
			for _, p := range pos {
				got = append(got, call[p])
			}
			for _, e := range do(append([]string{"COMMAND", "GETKEYS"}, call...)...).Elems {
				want = append(want, string(e.Str))
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("%s: keys of %v: %s", name, call, d)
			}
		}
	}
}

func TestBuiltinIsTheServersTable(t *testing.T) {
	table, do := serverTable(t)
	info := string(do("INFO", "server").Str)
	if !contains(info, "redis_version:7.0.") {
		t.Skip("the installed server is not version 7.0")
	}
	if d := cmp.Diff(table.String(), route.Builtin().String()); d != "" {
		t.Errorf("run go test -update: %s", d)
	}
}

func contains(s, sub string) bool {
	for i := 0; i+len(sub) <= len(s); i++ {
		if s[i:i+len(sub)] == sub {
			return true
		}
	}
	return false
}

func TestKeysOfBadArguments(t *testing.T) {
	table := route.Builtin()
	for _, call := range [][]string{
		{"EVAL", "x", "99999999999", "a"}, {"EVAL", "x", "-1", "a"}, {"EVAL", "x", "no", "a"}, {"EVAL", "x", "3", "a"},
		{"LMPOP", "9223372036854775807", "a", "LEFT"},
	} {
		args := make([][]byte, len(call))
		for i, a := range call {
			args[i] = []byte(a)
		}
		if pos, err := table.Lookup(args).Keys(nil, args); err == nil {
			t.Errorf("%v: keys at %v", call, pos)
		}
	}
}

func TestMapFromViews(t *testing.T) {
	before := `aa 10.0.0.1:6379@16379 myself,master - 0 0 1 connected 0-5460
bb 10.0.0.2:6379@16379,host master - 0 0 2 connected 5461-10922 [100-<-aa]
cc 10.0.0.3:6379@16379 master - 0 0 3 connected 10923-16383
dd 10.0.0.4:6379@16379 slave aa 0 0 1 connected
ee :0@0 noaddr - 0 0 0 disconnected`
	after := `aa 10.0.0.1:6379@16379 master,fail - 0 0 1 disconnected
bb 10.0.0.2:6379@16379 master - 0 0 2 connected 5461-10922
cc 10.0.0.3:6379@16379 master - 0 0 3 connected 10923-16383
dd :6379@16379 myself,master - 0 0 4 connected 0-5460`
	old, err := route.ParseNodes(before, "10.0.0.1:6379")
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := route.ParseNodes(after, "10.0.0.4:6379")
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]*route.Map{"old last": route.Merge(fresh, old), "old first": route.Merge(old, fresh)} {
		if got := m.Owner(7); got != "10.0.0.4:6379" || m.Missing != 0 {
			t.Errorf("%s: slot 7 at %s, %d missing", name, got, m.Missing)
		}
		if d := cmp.Diff([]string{"10.0.0.4:6379", "10.0.0.2:6379", "10.0.0.3:6379"}, m.Masters); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	m := route.Merge(old)
	if n := m.WithOwner(7, "10.0.0.9:1"); n.Owner(7) != "10.0.0.9:1" || m.Owner(7) != "10.0.0.1:6379" {
		t.Error("WithOwner must change the copy only")
	}
	for _, bad := range []string{"x", "aa 1.2.3.4 master - 0 0 1 c", "aa 1.1.1.1:1@1 master - 0 0 1 c 5-99999"} {
		if _, err := route.ParseNodes(bad, "a:1"); err == nil {
			t.Errorf("accepted %q", bad)
		}
	}
}
