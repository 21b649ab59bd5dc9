package zonenet

import (
	"context"
	"encoding/binary"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"fournines/internal/eventually"
)

func testPipe(t testing.TB, write func([]byte) error) *pipe {
	t.Helper()
	counter := func() prometheus.Counter { return prometheus.NewCounter(prometheus.CounterOpts{Name: "x"}) }
	p := newPipe(time.Now(), newBuffers(), pipeStats{
		packets: counter(), bytes: counter(), lost: counter(), dropped: counter(), cut: counter(), overflow: counter(), writeError: counter(),
	}, func() bool { return false }, write)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); p.run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return p
}

func sendNumber(p *pipe, k, size int) {
	buf := p.bufs.small.Get().(*[]byte)
	if size > smallPacket {
		p.bufs.put(buf)
		buf = p.bufs.large.Get().(*[]byte)
	}
	binary.BigEndian.PutUint32((*buf)[vnetHeaderLen:], uint32(k))
	p.send(buf, size)
}

func TestPipeKeepsOrder(t *testing.T) {
	var mu sync.Mutex
	var got []int
	p := testPipe(t, func(b []byte) error {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, int(binary.BigEndian.Uint32(b[vnetHeaderLen:])))
		return nil
	})
	p.link.Store(&Link{Delay: Duration(3 * time.Millisecond), Jitter: Duration(5 * time.Millisecond)})
	const total = 3000 // more than the ring holds at first
	for k := range total {
		if k == total/2 { // a shorter delay must not let packets overtake
			p.link.Store(&Link{})
		}
		sendNumber(p, k, 100+(k%3)*1500)
	}
	eventually.Nil(t, 30*time.Second, func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(got) < total {
			return context.DeadlineExceeded
		}
		return nil
	})
	for k, v := range got {
		if k != v {
			t.Fatalf("packet %d arrived at place %d", v, k)
		}
	}
}

func TestPipeDropsAndBounds(t *testing.T) {
	p := testPipe(t, func([]byte) error { return nil })
	p.link.Store(&Link{Drop: true})
	sendNumber(p, 1, 100)
	if got := testutil.ToFloat64(p.stats.dropped); got != 1 {
		t.Errorf("dropped = %v", got)
	}
	p.link.Store(&Link{Loss: 1})
	sendNumber(p, 1, 100)
	if got := testutil.ToFloat64(p.stats.lost); got != 1 {
		t.Errorf("lost = %v", got)
	}
	p.link.Store(&Link{Rate: 1000}) // one second of backlog and no more
	for k := range 20 {
		sendNumber(p, k, vnetHeaderLen+200)
	}
	if got := testutil.ToFloat64(p.stats.overflow); got < 10 || got > 16 {
		t.Errorf("overflow of the rate limit = %v", got)
	}
	before := testutil.ToFloat64(p.stats.overflow)
	p.link.Store(&Link{Delay: Duration(10 * time.Second)})
	for k := range maxQueued/60000 + 10 {
		sendNumber(p, k, 60000)
	}
	if got := testutil.ToFloat64(p.stats.overflow); got-before < 9 {
		t.Errorf("overflow of the queue = %v", got-before)
	}
}

func TestPipeAllocatesNothingPerPacket(t *testing.T) {
	seen := make(chan struct{}, 1)
	p := testPipe(t, func([]byte) error { seen <- struct{}{}; return nil })
	got := testing.AllocsPerRun(2000, func() {
		sendNumber(p, 1, 1500)
		<-seen
	})
	// The pools may be emptied by a collection (and are at random with the
	// race detector), so a fraction is allowed.
	limit := 0.2
	if raceEnabled {
		limit = 3
	}
	if got > limit {
		t.Errorf("%v allocations per packet", got)
	}
}

func BenchmarkPipe(b *testing.B) {
	for _, size := range []int{100, 1500, 65000} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			done := make(chan struct{}, 1024)
			p := testPipe(b, func([]byte) error { done <- struct{}{}; return nil })
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				sendNumber(p, 1, size)
				<-done
			}
		})
	}
}
