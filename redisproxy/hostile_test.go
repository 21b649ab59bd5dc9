package redisproxy_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"fournines/internal/eventually"
	"fournines/internal/resp"
	"fournines/redisproxy"
)

func containsLine(text, line string) bool {
	for l := range strings.SplitSeq(text, "\r\n") {
		if l == line {
			return true
		}
	}
	return false
}

func TestClientThatLeavesWhileBlocked(t *testing.T) {
	r := newRig(t, nil)
	ctx := context.Background()
	cl := r.client(t, 1)
	owner := r.cluster.Owner(t, 3217) // the slot of database 1
	for round := range 20 {
		w := dialWire(t, r.addr, "AUTH", "dify", r.cluster.Password("dify"))
		w.do(t, "SELECT", "1")
		if _, err := w.conn.Write(resp.AppendCommandStrings(nil, "BRPOP", "queue", "0")); err != nil {
			t.Fatal(err)
		}
		eventually.Nil(t, time.Minute, func() error { return blockedClients(t, r, owner, 1) })
		_ = w.conn.Close()
		// In every other round the push may still meet the vanished client: then
		// its element is put back.
		if round%2 == 0 {
			eventually.Nil(t, time.Minute, func() error { return blockedClients(t, r, owner, 0) })
		}
		if err := cl.LPush(ctx, "queue", round).Err(); err != nil {
			t.Fatal(err)
		}
		eventually.Nil(t, time.Minute, func() error {
			if err := blockedClients(t, r, owner, 0); err != nil {
				return err
			}
			if v, err := cl.LRange(ctx, "queue", 0, -1).Result(); err != nil || len(v) != 1 || v[0] != fmt.Sprint(round) {
				return fmt.Errorf("queue holds %v, %w", v, err)
			}
			return nil
		})
		if err := cl.Del(ctx, "queue").Err(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestManyBlockedClientsStarveNobody(t *testing.T) {
	r := newRig(t, func(c *redisproxy.Config) { c.Limits.MaxBlocked = 50 })
	ctx := context.Background()
	var blocked []*wire
	for range 50 {
		w := dialWire(t, r.addr, "AUTH", "dify", r.cluster.Password("dify"))
		w.do(t, "SELECT", "1")
		if _, err := w.conn.Write(resp.AppendCommandStrings(nil, "BLPOP", "none", "0")); err != nil {
			t.Fatal(err)
		}
		blocked = append(blocked, w)
	}
	eventually.Nil(t, time.Minute, func() error { return blockedClients(t, r, r.cluster.Owner(t, 3217), 50) })
	cl := r.client(t, 1)
	if err := cl.Set(ctx, "k", "v", 0).Err(); err != nil {
		t.Fatalf("SET beside blocked clients: %v", err)
	}
	if err := cl.BLPop(ctx, time.Second, "none").Err(); err == nil || !strings.Contains(err.Error(), "maxBlocked") {
		t.Fatalf("one blocked client too many: %v", err)
	}
	for _, w := range blocked {
		_ = w.conn.Close()
	}
	eventually.Nil(t, time.Minute, func() error {
		if err := cl.BLPop(ctx, time.Second, "none").Err(); !errors.Is(err, redis.Nil) {
			return fmt.Errorf("after the others left: %w", err)
		}
		return nil
	})
}

func TestHostileInput(t *testing.T) {
	r := newRig(t, func(c *redisproxy.Config) {
		c.Limits.MaxBulkBytes = 1 << 20
		c.Limits.OutputBufferBytes = 4 << 20
		c.Limits.MaxKeysPerCommand = 1000
		c.Timeouts.ClientWrite = time.Second
	})
	ctx := context.Background()
	login := []string{"AUTH", "dify", r.cluster.Password("dify")}
	cl := r.client(t, 0)

	raw := func(hello []string, in string) string {
		t.Helper()
		w := dialWire(t, r.addr, hello...)
		_ = w.conn.SetDeadline(time.Now().Add(time.Minute))
		_, _ = w.conn.Write([]byte(in))
		out, err := w.rd.Append(nil)
		if err != nil {
			t.Fatalf("%.40q: no answer: %v", in, err)
		}
		return string(out)
	}
	var many strings.Builder
	for i := range 100000 {
		fmt.Fprintf(&many, "$%d\r\n%d\r\n", len(fmt.Sprint(i)), i)
	}
	for name, tt := range map[string]struct {
		hello    []string
		in, want string
	}{
		"giant bulk":            {login, "*2\r\n$3\r\nGET\r\n$999999999999\r\n", "invalid bulk length"},
		"bulk over the limit":   {login, "*2\r\n$3\r\nGET\r\n$1048577\r\n", "invalid bulk length"},
		"giant array":           {login, "*999999999\r\n", "invalid multibulk length"},
		"nested":                {login, "*1\r\n*1\r\n*1\r\n", "expected '$', got '*'"},
		"many keys":             {login, "*100001\r\n$4\r\nMGET\r\n" + many.String(), "maxKeysPerCommand"},
		"over the key limit":    {login, "*2002\r\n$4\r\nMGET\r\n" + upTo(many.String(), "$4\r\n2001"), "maxKeysPerCommand"},
		"negative bulk":         {login, "*2\r\n$3\r\nGET\r\n$-1\r\n", "invalid bulk length"},
		"length that overflows": {login, "*2\r\n$3\r\nGET\r\n$18446744073709551617\r\n", "invalid bulk length"},
		"length with a sign":    {login, "*+2\r\n$3\r\nGET\r\n$1\r\na\r\n", "invalid multibulk length"},
		"empty requests":        {login, strings.Repeat("*0\r\n\r\n*-1\r\n", 10000) + "PING\r\n", "PONG"},
		"garbage":               {nil, "GET / HTTP/1.1\r\n", "NOAUTH"},
		"binary garbage":        {login, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", "unknown command"},
		"unbalanced quotes":     {login, "SET \"k v\r\n", "unbalanced quotes"},
		"endless quotes":        {login, "SET \"" + strings.Repeat("\\x", 50000), "too big inline request"},
		"stranger":              {nil, "*2\r\n$3\r\nGET\r\n$1\r\na\r\n", "NOAUTH"},
		"stranger's large bulk": {nil, "*2\r\n$4\r\nAUTH\r\n$20000\r\n", "invalid bulk length"},
		"long line":             {login, strings.Repeat("x", 100000), "too big inline request"},
		"forged reply":          {login, "*1\r\n$8\r\nAB\r\n+OK!\r\n", "unknown command 'AB  +OK!'"},
		"reserved key":          {login, "SET {db1}:k v\r\n", "must not begin with {db1}:"},
		"cross slot":            {login, "SINTER a b\r\n", "CROSSSLOT"},
		"refused by name":       {login, "CLUSTER NODES\r\n", "one standalone Redis"},
		"monitor":               {login, "MONITOR\r\n", "not available through the proxy"},
		"keyspace events":       {login, "SUBSCRIBE __keyevent@0__:expired\r\n", "keyspace notifications"},
		"wrong password":        {nil, "AUTH dify wrong\r\n", "WRONGPASS"},
		"unknown user":          {nil, "AUTH nobody wrong\r\n", "WRONGPASS"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := raw(tt.hello, tt.in); !strings.Contains(got, tt.want) {
				t.Errorf("got %.200q, want %q", got, tt.want)
			}
		})
	}

	// Where so many keys are allowed, they are answered.
	t.Run("100,000 keys that are allowed", func(t *testing.T) {
		generous := startProxy(t, r.cluster, func(c *redisproxy.Config) { c.Limits.MaxKeysPerCommand = 200000 })
		w := dialWire(t, generous.addr, login...)
		if got := w.do(t, "MSET", "7", "seven", "99999", "last"); got != "+OK\r\n" {
			t.Fatalf("MSET: %q", got)
		}
		if _, err := w.conn.Write([]byte("*100001\r\n$4\r\nMGET\r\n" + many.String())); err != nil {
			t.Fatal(err)
		}
		raw, err := w.rd.Append(nil)
		v, _, perr := resp.Parse(raw)
		if err != nil || perr != nil || len(v.Elems) != 100000 {
			t.Fatalf("%.100q, %v", raw, err)
		}
		values := 0
		for _, e := range v.Elems {
			if !e.IsNull {
				values++
			}
		}
		if values != 2 || string(v.Elems[7].Str) != "seven" || string(v.Elems[99999].Str) != "last" {
			t.Errorf("%d values, %q and %q", values, v.Elems[7].Str, v.Elems[99999].Str)
		}
	})

	t.Run("reply over the output limit", func(t *testing.T) {
		for range 8 {
			if err := cl.Append(ctx, "big", strings.Repeat("x", 1<<20)).Err(); err != nil {
				t.Fatal(err)
			}
		}
		if got := raw(login, "*2\r\n$3\r\nGET\r\n$3\r\nbig\r\n"); !strings.Contains(got, "outputBufferBytes") {
			t.Errorf("got %.100q", got)
		}
		if n, err := cl.StrLen(ctx, "big").Result(); err != nil || n != 8<<20 {
			t.Errorf("other clients of the connection: %d, %v", n, err)
		}
	})

	// A script may nest its answer as deep as Lua can; the proxy neither follows nor
	// breaks.
	t.Run("nested reply", func(t *testing.T) {
		for _, db := range []string{"0", "1"} {
			w := dialWire(t, r.addr, login...)
			w.do(t, "SELECT", db)
			got := w.do(t, "EVAL", "local t = {} for i = 1, 5000 do t = {t} end return t", "1", "k")
			if !strings.HasPrefix(got, "*1\r\n*1\r\n") && !strings.HasPrefix(got, "-ERR") {
				t.Errorf("got %.100q", got)
			}
			if got := w.do(t, "PING"); got != "+PONG\r\n" {
				t.Errorf("afterwards: %q", got)
			}
		}
	})

	// What they let lie is bounded: by what the kernel holds, a round's answers and
	// the messages of one subscriber.
	for name, in := range map[string][]string{"slow reader": {"GET", "mega"}, "slow subscriber": {"SUBSCRIBE", "flood"}} {
		t.Run(name, func(t *testing.T) {
			text := strings.Repeat("y", 1<<20)
			if err := cl.Set(ctx, "mega", text, 0).Err(); err != nil {
				t.Fatal(err)
			}
			subscribes := in[0] == "SUBSCRIBE"
			cut := r.metric(t, "clients_cut_total")
			w := dialWire(t, r.addr, login...)
			_ = w.conn.(*net.TCPConn).SetReadBuffer(4 << 10)
			runtime.GC()
			before := heapInUse()
			if subscribes {
				w.do(t, in...)
			} else {
				_ = w.conn.SetWriteDeadline(time.Now().Add(time.Minute))
				for range 2000 {
					if _, err := w.conn.Write(resp.AppendCommandStrings(nil, in...)); err != nil {
						break
					}
				}
			}
			peak := before
			eventually.Nil(t, time.Minute, func() error {
				if subscribes {
					if err := cl.Publish(ctx, "flood", text).Err(); err != nil {
						return err
					}
				}
				peak = max(peak, heapInUse())
				if r.metric(t, "clients_cut_total") == cut {
					return errors.New("it is still there")
				}
				return nil
			})
			// 4 MiB are allowed; the rest is what Go has not collected yet.
			if grown := peak - before; grown > 128<<20 {
				t.Errorf("it made the proxy hold %d bytes", grown)
			}
		})
	}

	if err := cl.Ping(ctx).Err(); err != nil {
		t.Fatalf("the proxy after all that: %v", err)
	}
}

// upTo is the part of s before mark.
func upTo(s, mark string) string {
	before, _, _ := strings.Cut(s, mark)
	return before
}

// heapInUse is what Go's heap takes.
func heapInUse() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse)
}
