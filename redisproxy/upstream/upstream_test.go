package upstream_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"

	"fournines/internal/servertest"
	"fournines/redisproxy/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func words(args ...string) [][]byte {
	out := make([][]byte, len(args))
	for i, a := range args {
		out[i] = []byte(a)
	}
	return out
}

func TestPayloadPrefixesKeysOnly(t *testing.T) {
	p := upstream.Payload{Args: words("SORT", "a", "GET", "a", "STORE", "b"), Keys: []int{1, 5}, Prefix: []byte("{db1}:"), Asking: true}
	want := "*1\r\n$6\r\nASKING\r\n*6\r\n$4\r\nSORT\r\n$7\r\n{db1}:a\r\n$3\r\nGET\r\n$1\r\na\r\n$5\r\nSTORE\r\n$7\r\n{db1}:b\r\n"
	if got := string(p.Append(nil)); got != want {
		t.Fatalf("got %q", got)
	}
}

// pool returns a pool that is closed at the end of the test.
func pool(t *testing.T) *upstream.Pool {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := upstream.NewPool(ctx, upstream.Config{DialTimeout: 5 * time.Second, Silence: time.Second, Multiplexed: 1, MaxDedicated: 1, MaxQueued: 1 << 20})
	t.Cleanup(func() {
		cancel()
		p.Retain(func(string) bool { return false })
		p.Wait()
	})
	return p
}

func do(n *upstream.Node, args ...string) (string, error) {
	w := upstream.NewWaiter()
	w.Budget.Store(1 << 20)
	var r upstream.Request
	w.Begin()
	n.Send(2, 0, w, &r, &upstream.Payload{Args: words(args...)})
	n.Kick(2, 0)
	w.Wait()
	return string(r.Reply), r.Err
}

func TestWhatIsKnownAboutAFailedRequest(t *testing.T) {
	r := servertest.NewRedis(t)
	p := pool(t)
	n := p.Node(r.Addr)
	if got, err := do(n, "PING"); got != "+PONG\r\n" || err != nil {
		t.Fatalf("PING = %q, %v", got, err)
	}
	// A script without end leaves the node silent: the request was sent, its result is unknown.
	if _, err := do(n, "EVAL", "local n=0 while n < 1e13 do n=n+1 end", "0"); !errors.Is(err, upstream.ErrLost) {
		t.Fatalf("request at a silent node: %v", err)
	}
	if _, err := do(p.Node("127.0.0.1:1"), "PING"); !errors.Is(err, upstream.ErrNotSent) {
		t.Fatalf("request at a closed port: %v", err)
	}
}

func TestDedicatedConnectionsAreLimitedAndReused(t *testing.T) {
	r := servertest.NewRedis(t)
	n := pool(t).Node(r.Addr)
	ctx := context.Background()
	d, err := n.Dedicated(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Dedicated(ctx, 2); !errors.Is(err, upstream.ErrBusy) {
		t.Fatalf("second connection: %v", err)
	}
	d.Release()
	again, err := n.Dedicated(ctx, 2)
	if err != nil || again.ID != d.ID {
		t.Fatalf("the idle connection was not reused: %v", err)
	}
	again.Close()
}
