//go:build soak

package redis

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"fournines/internal/eventually"
	"fournines/internal/resp"
	"fournines/internal/servertest"
)

var soakFor = flag.Duration("for", 10*time.Minute, "how long TestSoakGrowth goes on; at least 1m")

// level is what must not grow: by a share of what it was, plus a floor for what a
// busy machine makes of it.
type level struct {
	metric       string
	share, floor float64
}

var levels = []level{
	{"go_goroutines", 0.2, 50},
	{"process_open_fds", 0.2, 50},
	{"go_memstats_heap_inuse_bytes", 0.3, 16 << 20},
	{"process_resident_memory_bytes", 0.3, 32 << 20},
}

// proxyProcess is `fournines redisproxy`, a process of its own, so that what it
// uses is its own.
type proxyProcess struct {
	cluster     *servertest.RedisCluster
	addr, admin string
	clients     []*redis.Client
}

func startProcess(t *testing.T) *proxyProcess {
	t.Helper()
	program := absolute(t, "../../bin/fournines")
	servertest.Need(t, program)
	p := &proxyProcess{cluster: servertest.NewRedisCluster(t), addr: servertest.FreeAddress(t), admin: servertest.FreeAddress(t)}
	var text strings.Builder
	// Limits so small that the badly behaved reach them.
	fmt.Fprintf(&text, "listen: %q\nadminListen: %q\nupstream: {user: redisproxy, passwordFile: %q}\nusers: [{name: dify, passwordFile: %q}]\nlimits: {outputBufferBytes: 1048576, maxBlocked: 200}\ntimeouts: {clientWrite: 2s}\nnodes:\n",
		p.addr, p.admin, p.cluster.PasswordFile("redisproxy"), p.cluster.PasswordFile("dify"))
	for _, a := range p.cluster.Addrs() {
		fmt.Fprintf(&text, "  - {address: %q}\n", a)
	}
	file := filepath.Join(t.TempDir(), "redisproxy.yaml")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "redisproxy", "--config", file, "--log-level", "error")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out servertest.Output
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Errorf("redisproxy: %v\n%s", err, out.String())
		}
	})
	eventually.Nil(t, time.Minute, func() error {
		answer, err := http.Get("http://" + p.admin + "/readyz")
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", answer.Status, out.String())
		}
		return nil
	})
	return p
}

// metrics reads the sums of its metrics by name.
func (p *proxyProcess) metrics() (map[string]float64, error) {
	answer, err := http.Get("http://" + p.admin + "/metrics")
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	sums := map[string]float64{}
	for sc := bufio.NewScanner(answer.Body); sc.Scan(); {
		name, value, ok := strings.Cut(sc.Text(), " ")
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil && name != "#" {
			name, _, _ = strings.Cut(name, "{")
			sums[name] += v
		}
	}
	return sums, nil
}

// client makes a client that TestSoakGrowth closes at its end.
func (p *proxyProcess) client(db, protocol int) *redis.Client {
	cl := redis.NewClient(&redis.Options{
		Addr: p.addr, Username: "dify", Password: p.cluster.Password("dify"), DB: db, Protocol: protocol, ReadTimeout: 20 * time.Second,
	})
	p.clients = append(p.clients, cl)
	return cl
}

// raw sends bytes on a connection of its own, after login when that is wanted,
// waits for want bytes of answer, keeps the connection for a moment and drops it.
func (p *proxyProcess) raw(login bool, in []byte, want int, keep time.Duration) error {
	conn, err := net.Dial("tcp", p.addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if login {
		in = append(resp.AppendCommandStrings(nil, "AUTH", "dify", p.cluster.Password("dify")), in...)
		want += len("+OK\r\n")
	}
	if _, err := conn.Write(in); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, make([]byte, want)); err != nil {
		return err
	}
	time.Sleep(keep)
	return nil
}

// unread asks for more than it reads, until the proxy drops it.
func (p *proxyProcess) unread(in []byte) error {
	conn, err := net.Dial("tcp", p.addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := conn.Write(append(resp.AppendCommandStrings(nil, "AUTH", "dify", p.cluster.Password("dify")), in...)); err != nil {
		return err
	}
	time.Sleep(3 * time.Second) // longer than timeouts.clientWrite
	return nil
}

// loads are what clients do, well behaved and not. Each is one step.
func (p *proxyProcess) loads() map[string]func(ctx context.Context) error {
	plain, plain3 := p.client(0, 2), p.client(0, 3)
	queue := p.client(1, 2)
	var scripts atomic.Int64
	key := func() string { return fmt.Sprint("key:", rand.IntN(5000)) }
	word := func(args ...string) []byte { return resp.AppendCommandStrings(nil, args...) }
	ordinary := func(cl *redis.Client) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := cl.Pipelined(ctx, func(pipe redis.Pipeliner) error {
				for range 20 {
					pipe.Set(ctx, key(), strings.Repeat("v", rand.IntN(4<<10)), time.Minute)
					pipe.Get(ctx, key())
					pipe.MGet(ctx, key(), key(), key())
					pipe.Del(ctx, key(), key())
				}
				return nil
			})
			if errors.Is(err, redis.Nil) {
				err = nil
			}
			return err
		}
	}
	return map[string]func(ctx context.Context) error{
		"ordinary, RESP2": ordinary(plain),
		"ordinary, RESP3": ordinary(plain3),
		"transactions": func(ctx context.Context) error {
			err := queue.Watch(ctx, func(tx *redis.Tx) error {
				_, err := tx.TxPipelined(ctx, func(pipe redis.Pipeliner) error {
					pipe.Incr(ctx, "counter")
					pipe.HSet(ctx, "hash", key(), "v")
					return pipe.Expire(ctx, "hash", time.Minute).Err()
				})
				return err
			}, "watched")
			return err
		},
		// More scripts than the proxy remembers.
		"scripts": func(ctx context.Context) error {
			n := scripts.Add(1)
			return plain.Eval(ctx, fmt.Sprintf("return {%d, KEYS[1]} -- %s", n, strings.Repeat("x", 500)), []string{key()}).Err()
		},
		"pushes": func(ctx context.Context) error {
			_, err := queue.Pipelined(ctx, func(pipe redis.Pipeliner) error {
				pipe.LPush(ctx, "queue", "job")
				return pipe.LTrim(ctx, "queue", 0, 100).Err()
			})
			return err
		},
		"leaves while blocked": func(context.Context) error {
			in := append(word("SELECT", "1"), word("BRPOP", fmt.Sprint("empty", rand.IntN(20)), "queue-"+strconv.Itoa(rand.IntN(3)), "0")...)
			return p.raw(true, in, len("+OK\r\n"), 20*time.Millisecond)
		},
		"subscribes and leaves": func(context.Context) error {
			name := strconv.Itoa(rand.IntN(1000))
			in := slices.Concat(word("SUBSCRIBE", "c"+name), word("PSUBSCRIBE", name+"*"), word("SSUBSCRIBE", "s"+name))
			return p.raw(true, in, len("*3\r\n$9\r\nsubscribe\r\n"), 5*time.Millisecond)
		},
		"publishes": func(ctx context.Context) error {
			name := strconv.Itoa(rand.IntN(1000))
			_, err := plain.Pipelined(ctx, func(pipe redis.Pipeliner) error {
				pipe.Publish(ctx, "c"+name, "message")
				pipe.SPublish(ctx, "s"+name, "message")
				return pipe.Publish(ctx, "flood", strings.Repeat("f", 16<<10)).Err()
			})
			return err
		},
		"reads no messages": func(context.Context) error { return p.unread(word("SUBSCRIBE", "flood")) },
		"reads no answers": func(ctx context.Context) error {
			if err := plain.Set(ctx, "big", strings.Repeat("b", 300<<10), time.Minute).Err(); err != nil {
				return err
			}
			return p.unread([]byte(strings.Repeat(string(word("GET", "big")), 200)))
		},
		"wrong password": func(context.Context) error { return p.raw(false, word("AUTH", "dify", "wrong"), len("-WRONGPASS"), 0) },
		"no RESP": func(context.Context) error {
			in := make([]byte, 64)
			for i := range in {
				in[i] = byte(rand.IntN(256))
			}
			in[0], in[len(in)-1] = 'x', '\n'
			return p.raw(false, in, 1, 0)
		},
		"a giant, announced": func(context.Context) error {
			return p.raw(true, []byte("*2\r\n$3\r\nGET\r\n$999999999999\r\n"), len("-ERR"), 0)
		},
		"half a command": func(context.Context) error {
			return p.raw(true, []byte("*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$1000000\r\n"+strings.Repeat("h", 10000)), 0, 5*time.Millisecond)
		},
	}
}

// A proxy that runs for months must not grow: not with clients that come and go,
// break off, send nonsense or read nothing, and not with nodes that die.
func TestSoakGrowth(t *testing.T) {
	p := startProcess(t)
	idle, err := p.metrics()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	begun := time.Now()
	steps := map[string]*atomic.Int64{}
	var running sync.WaitGroup
	for name, step := range p.loads() {
		n := new(atomic.Int64)
		steps[name] = n
		for range 2 {
			running.Go(func() {
				for ctx.Err() == nil {
					if step(ctx) == nil {
						n.Add(1)
					}
					time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
				}
			})
		}
	}
	type reading struct {
		at time.Duration
		of map[string]float64
	}
	var seen []reading
	running.Go(func() {
		tick := time.NewTicker(2 * time.Second)
		defer tick.Stop()
		for ; ctx.Err() == nil; <-tick.C {
			if m, err := p.metrics(); err == nil {
				seen = append(seen, reading{time.Since(begun), m})
			}
		}
	})
	faults := 0
	for ; time.Since(begun) < *soakFor; faults++ {
		failover(t, p.cluster, faults%3)
		next := begun.Add(time.Duration(faults+1) * max(*soakFor/20, 15*time.Second))
		time.Sleep(time.Until(next))
	}
	whole := time.Since(begun)
	cancel()
	running.Wait()
	for _, cl := range p.clients {
		_ = cl.Close()
	}

	for name, n := range steps {
		if n.Load() < 10 {
			t.Errorf("%q was done %d times: this was no soak", name, n.Load())
		}
	}
	t.Logf("%v, %d masters killed, %.0f commands, %.0f clients", whole.Round(time.Second), faults,
		seen[len(seen)-1].of["fournines_redisproxy_commands_total"], seen[len(seen)-1].of["fournines_redisproxy_clients_accepted_total"])
	median := func(metric string, from, to time.Duration) float64 {
		var v []float64
		for _, r := range seen {
			if r.at >= from && r.at < to {
				v = append(v, r.of[metric])
			}
		}
		if len(v) == 0 {
			t.Fatalf("nothing was read between %v and %v", from, to)
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	for _, l := range levels {
		before, after := median(l.metric, whole/5, 2*whole/5), median(l.metric, 4*whole/5, whole)
		limit := before*(1+l.share) + l.floor
		t.Logf("%s: %.4g in the second fifth, %.4g in the last, limit %.4g", l.metric, before, after, limit)
		if after > limit {
			t.Errorf("%s grew", l.metric)
		}
	}
	// What is left when nobody asks any more is what leaked.
	eventually.Nil(t, 2*time.Minute, func() error {
		m, err := p.metrics()
		if err != nil {
			return err
		}
		for _, l := range levels[:2] { // memory is given back late
			if m[l.metric] > idle[l.metric]+l.floor/2 {
				return fmt.Errorf("%s: %v when idle, %v before the load", l.metric, m[l.metric], idle[l.metric])
			}
		}
		if n := m["fournines_redisproxy_clients"] + m["fournines_redisproxy_panics_total"]; n > 0 {
			return fmt.Errorf("%v clients are left, or the proxy has panicked", n)
		}
		return nil
	})
}
