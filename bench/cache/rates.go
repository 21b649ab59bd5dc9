package main

import (
	"bufio"
	"cmp"
	"container/list"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"fournines/bench/result"
	"fournines/gateway/cache"
)

// rates are the shares of requests that were hits, one for each round.
type rates struct{ ours, lru, optimal []float64 }

// line adds the medians to a table.
func (r *rates) line(w io.Writer, name string) {
	ours, lru, optimal := result.Of(r.ours).Median, result.Of(r.lru).Median, result.Of(r.optimal).Median
	fmt.Fprintf(w, "| %s | %.3f | %.3f | %.3f | %.3f |\n", name, ours, ours/optimal, lru, optimal)
}

// answerBytes is the size of every answer, so that a bound in bytes is one in
// entries.
const answerBytes = 6 << 10

// measure lets all see the same requests; the first warm ones are not counted.
func (r *rates) measure(ctx context.Context, requests []uint64, warm, entries int) error {
	ours, err := newBounded(entries)
	if err != nil {
		return err
	}
	defer ours.c.Close()
	old := newLRU(entries)
	counted := len(requests) - warm
	ourHits, lruHits := 0, 0
	counts := map[uint64]int{}
	for i, k := range requests {
		hit, err := ours.ask(ctx, k)
		if err != nil {
			return err
		}
		hitLRU := old.ask(k)
		if i < warm {
			continue
		}
		counts[k]++
		if hit {
			ourHits++
		}
		if hitLRU {
			lruHits++
		}
	}
	all := make([]int, 0, len(counts))
	for _, n := range counts {
		all = append(all, n)
	}
	slices.SortFunc(all, func(a, b int) int { return cmp.Compare(b, a) })
	best := 0 // it knows what will be asked, and never changes
	for _, n := range all[:min(entries, len(all))] {
		best += n
	}
	share := func(n int) float64 { return float64(n) / float64(counted) }
	r.ours, r.lru, r.optimal = append(r.ours, share(ourHits)), append(r.lru, share(lruHits)), append(r.optimal, share(best))
	return nil
}

// bounded is our cache with room for so many answers.
type bounded struct {
	c    *cache.Cache
	body []byte
}

func newBounded(entries int) (*bounded, error) {
	b := &bounded{body: make([]byte, answerBytes)}
	cfg := cache.DefaultConfig()
	cfg.Enabled = true
	probe, err := cache.New(cfg, nil, prometheus.NewRegistry())
	if err != nil {
		return nil, err
	}
	defer probe.Close()
	b.c = probe
	if _, err := b.ask(context.Background(), 0); err != nil {
		return nil, err
	}
	cfg.MaxBytes = int64(probe.Top(1)[0].Bytes) * int64(entries)
	b.c, err = cache.New(cfg, nil, prometheus.NewRegistry())
	return b, err
}

// ask tells whether k was there, and keeps it when it was not.
func (b *bounded) ask(ctx context.Context, k uint64) (bool, error) {
	q := &cache.Question{Dataset: "d", App: "a"}
	// Spread as a hash would be.
	binary.LittleEndian.PutUint64(q.Key[:], k*0x9E3779B97F4A7C15)
	binary.LittleEndian.PutUint64(q.Key[8:], k)
	v, err := b.c.Visit(ctx, q)
	if err != nil {
		return false, err
	}
	if v.Result == cache.Miss {
		v.Keep(nil, b.body)
	}
	return v.Result == cache.Hit, nil
}

// lru is the policy that most caches have.
type lru struct {
	max   int
	order *list.List
	at    map[uint64]*list.Element
}

func newLRU(entries int) *lru { return &lru{entries, list.New(), map[uint64]*list.Element{}} }

func (l *lru) ask(k uint64) bool {
	if e := l.at[k]; e != nil {
		l.order.MoveToFront(e)
		return true
	}
	l.at[k] = l.order.PushFront(k)
	if l.order.Len() > l.max {
		last := l.order.Back()
		l.order.Remove(last)
		delete(l.at, last.Value.(uint64))
	}
	return false
}

// popularity is a Zipf distribution over ranks 1 to n.
type popularity []float64 // cumulated

func newPopularity(exponent float64, n int) popularity {
	p := make(popularity, n)
	sum := 0.0
	for i := range p {
		sum += math.Pow(float64(i+1), -exponent)
		p[i] = sum
	}
	for i := range p {
		p[i] /= sum
	}
	return p
}

func (p popularity) draw(r *rand.Rand) uint64 {
	return uint64(min(sort.SearchFloat64s(p, r.Float64()), len(p)-1))
}

// zipf draws n requests for so many queries.
func zipf(exponent float64, queries, n int, seed uint64) []uint64 {
	p, r := newPopularity(exponent, queries), rand.New(rand.NewPCG(seed, 1))
	out := make([]uint64, n)
	for i := range out {
		out[i] = p.draw(r)
	}
	return out
}

// readTrace reads the objects of a CSV trace of libCacheSim.
func readTrace(path string) (objects []uint64, distinct int, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	seen := map[uint64]bool{}
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		if strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.SplitN(line, ",", 3)
		if len(fields) < 2 {
			return nil, 0, fmt.Errorf("%s:%d: not \"time, object, ...\"", path, n)
		}
		object, err := strconv.ParseUint(strings.TrimSpace(fields[1]), 10, 64)
		if err != nil {
			return nil, 0, fmt.Errorf("%s:%d: %w", path, n, err)
		}
		objects = append(objects, object)
		seen[object] = true
	}
	return objects, len(seen), lines.Err()
}
