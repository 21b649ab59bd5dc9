package redisproxy

import (
	"strings"
	"testing"

	"fournines/internal/resp"
	"fournines/redisproxy/keyspace"
	"fournines/redisproxy/route"
)

func TestWhatTellsThatATransactionWasNotExecuted(t *testing.T) {
	table := route.Builtin()
	db := keyspace.New(1)
	bulk := func(s string) resp.Value { return resp.Value{Kind: resp.Bulk, Str: []byte(s)} }
	null := resp.Value{Kind: resp.Bulk, IsNull: true}
	for name, tt := range map[string]struct {
		commands []string
		ask      string // "" when nothing tells
		written  []resp.Value
		not      []resp.Value
	}{
		"kombu notes a message": {[]string{"ZADD index 1700000000.5 tag", "HSET unacked tag body"}, "HGET unacked tag", []resp.Value{bulk("body")}, []resp.Value{null, bulk("other")}},
		"a score":               {[]string{"ZADD z 1 a 2e3 b"}, "ZSCORE z b", []resp.Value{bulk("2000"), {Kind: resp.Double, Str: []byte("2000")}}, []resp.Value{null, bulk("1")}},
		"a member":              {[]string{"SADD s a b"}, "SISMEMBER s b", []resp.Value{{Kind: resp.Integer, Str: []byte("1")}}, []resp.Value{{Kind: resp.Integer, Str: []byte("0")}}},
		"named twice":           {[]string{"HSET h f a f b"}, "HGET h f", []resp.Value{bulk("b")}, []resp.Value{bulk("a")}},
		"with an expiry":        {[]string{"HMSET h f v", "EXPIRE h 60"}, "HGET h f", []resp.Value{bulk("v")}, nil},
		"with others":           {[]string{"SET k v", "SADD s a", "GET k", "SETEX k2 9 v"}, "SISMEMBER s a", nil, nil},
		"written over":          {[]string{"HSET h f v", "SET h v"}, "", nil, nil},
		"options":               {[]string{"ZADD z NX 1 a"}, "", nil, nil},
		"counts":                {[]string{"HSET h f v", "INCR n"}, "", nil, nil},
		"counts first":          {[]string{"INCR n", "HSET h f v"}, "", nil, nil},
		"removes":               {[]string{"ZREM index tag", "HDEL unacked tag"}, "", nil, nil},
		"sends a message":       {[]string{"SETEX k 9 v", "PUBLISH c m", "SADD s a"}, "", nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var all testimony
			for _, text := range tt.commands {
				o := &op{db: &db}
				for _, f := range strings.Fields(text) {
					o.cmd.Args = append(o.cmd.Args, []byte(f))
				}
				o.info = table.Lookup(o.cmd.Args)
				var err error
				if o.keys, err = o.info.Keys(nil, o.cmd.Args); err != nil {
					t.Fatal(err)
				}
				all.add(o)
			}
			w := all.witness
			if (w != nil) != (tt.ask != "") {
				t.Fatalf("witness %+v, want %q", w, tt.ask)
			}
			if w == nil {
				return
			}
			var words []string
			for _, a := range w.payload.Args {
				words = append(words, string(a))
			}
			if got := strings.Join(words, " "); got != tt.ask || string(w.payload.Prefix) != "{db1}:" {
				t.Errorf("asks %q with prefix %q, want %q", got, w.payload.Prefix, tt.ask)
			}
			for _, v := range tt.written {
				if !w.written(v) {
					t.Errorf("%+v is what it leaves", v)
				}
			}
			for _, v := range tt.not {
				if w.written(v) {
					t.Errorf("%+v is not what it leaves", v)
				}
			}
		})
	}
}
