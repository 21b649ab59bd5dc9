package gateway

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

// overlap is an instance's handler that streams and sees whether two requests of
// one conversation are ever in work together.
type overlap struct {
	now, most atomic.Int64
	open      chan struct{} // each receive ends one stream
}

func (o *overlap) serve(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, "/stop") {
		return
	}
	n := o.now.Add(1)
	for m := o.most.Load(); n > m && !o.most.CompareAndSwap(m, n); m = o.most.Load() {
	}
	send := emit(w, r)
	send(frame("message", ""))
	<-o.open
	o.now.Add(-1)
	send(frame("message_end", ""))
}

func TestConversationIsSerialised(t *testing.T) {
	o := &overlap{open: make(chan struct{})}
	a, b := newInstance(t, "zone-a", o.serve), newInstance(t, "zone-a", o.serve)
	cfg := testConfig(a, b)
	cfg.Conversations.MaxWaiting = 2
	g := start(t, cfg)
	var wg sync.WaitGroup
	var done atomic.Int64
	ask := func(body string) {
		wg.Go(func() {
			resp, err := client(t).Post(g.url+"/v1/chat-messages", "application/json", strings.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
				t.Errorf("got %d %q (%v)", resp.StatusCode, text, err)
			}
			done.Add(1)
		})
	}
	for range 3 {
		ask(oldChat)
	}
	eventually.Nil(t, patience, func() error {
		if o.now.Load() != 1 || g.turns.Waiting() != 2 {
			return fmt.Errorf("%d in work, %d waiting", o.now.Load(), g.turns.Waiting())
		}
		return nil
	})
	status, body, h := post(t, client(t), g.url+"/v1/chat-messages", oldChat)
	if status != 429 || !strings.Contains(body, "conversation_busy") || h.Get("Retry-After") == "" {
		t.Fatalf("a fourth one got %d %q", status, body)
	}
	// Other conversations, and new ones, do not wait.
	ask(newChat)
	ask(newChat)
	ask(strings.Replace(oldChat, "c1", "c2", 1))
	eventually.Nil(t, patience, func() error {
		if n := o.now.Load(); n != 4 {
			return fmt.Errorf("%d in work", n)
		}
		return nil
	})
	for range 6 {
		o.open <- struct{}{}
	}
	wg.Wait()
	if o.most.Load() != 4 || done.Load() != 6 {
		t.Fatalf("%d at a time, %d done", o.most.Load(), done.Load())
	}
	if n := g.metric(t, g.turnMetrics.waits.WithLabelValues("passed")); n != 2 {
		t.Fatalf("%v waits counted", n)
	}
}

// A conversation is free again with the last event, not only with the end of the
// connection, and when its client leaves.
func TestConversationIsReleased(t *testing.T) {
	release := make(chan struct{})
	var calls atomic.Int64
	a := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/stop") {
			return
		}
		send := emit(w, r)
		send(frame("message", ""))
		switch calls.Add(1) {
		case 1:
			send(frame("message_end", ""))
			<-release
		case 2:
			<-r.Context().Done()
		default:
			send(frame("message_end", ""))
		}
	})
	g := start(t, testConfig(a))
	_, first := openStream(t, g, "/v1/chat-messages", oldChat)
	if _, err := io.ReadFull(first, make([]byte, len(frame("message", "")+frame("message_end", "")))); err != nil {
		t.Fatal(err)
	}
	second, br := openStream(t, g, "/v1/chat-messages", oldChat)
	if _, err := br.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	_ = second.Body.Close() // leaves
	if status, body, _ := post(t, client(t), g.url+"/v1/chat-messages", oldChat); status != 200 {
		t.Fatalf("got %d %q", status, body)
	}
	close(release)
}

func TestConversationAcrossGateways(t *testing.T) {
	cluster := servertest.NewRedisCluster(t)
	o := &overlap{open: make(chan struct{})}
	in := newInstance(t, "zone-a", o.serve)
	cfg := testConfig(in)
	cfg.Redis = Redis{Nodes: cluster.Addrs(), User: "gateway", PasswordFile: cluster.PasswordFile("gateway")}
	cfg.Conversations.Wait = patience
	gateways := []*running{start(t, cfg), start(t, cfg)}
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			resp, err := client(t).Post(gateways[i%2].url+"/v1/chat-messages", "application/json", strings.NewReader(oldChat))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
				t.Errorf("got %d %q (%v)", resp.StatusCode, text, err)
			}
		})
	}
	for range 6 {
		o.open <- struct{}{}
	}
	wg.Wait()
	if o.most.Load() != 1 {
		t.Fatalf("%d of one conversation at a time", o.most.Load())
	}
	// Redis away: each gateway alone, and nobody waits for it.
	for i := range len(cluster.Addrs()) {
		cluster.Pause(t, i)
	}
	defer func() {
		for i := range len(cluster.Addrs()) {
			cluster.Resume(t, i)
		}
	}()
	go func() { o.open <- struct{}{} }()
	begin := time.Now()
	if status, body, _ := post(t, client(t), gateways[0].url+"/v1/chat-messages", oldChat); status != 200 {
		t.Fatalf("without Redis: %d %q", status, body)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("without Redis a request took %v", took)
	}
	if n := gateways[0].metric(t, gateways[0].turnMetrics.failed); n == 0 {
		t.Error("the failure is not counted")
	}
}
