package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fournines/gateway"
	"fournines/gateway/cache"
)

const (
	dataset = "3fa85f64-5717-4562-b3fc-2c963f66afa6"
	apiKey  = "dataset-bench"

	// The backend has four places of 80 ms: 50 retrievals a second.
	backendPlaces = 4
	backendTime   = 80 * time.Millisecond
	backendRate   = int(backendPlaces * time.Second / backendTime)

	offered      = 1100 // requests a second
	warmRequests = 60_000
	clients      = 32 // that warm
	goodTime     = time.Second
	giveUp       = 10 * time.Second
	// mostPending bounds the requests on their way; of a backend that cannot
	// keep up, more would measure this machine. What is due beyond it fails.
	mostPending = 2000
)

// questionBody is what a client of Dify's service API sends.
func questionBody(n uint64) []byte {
	return fmt.Appendf(nil, `{"query": "How do I reset the password of product %d?", "retrieval_model": {"search_method": "semantic_search", "reranking_enable": false, "top_k": 4, "score_threshold_enabled": true, "score_threshold": 0.5}}`, n)
}

// processorTime is what this process has used.
func processorTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// hitsPerCoreSecond asks for hot answers as the gateway does.
func hitsPerCoreSecond(ctx context.Context, long time.Duration) (float64, error) {
	cfg := cache.DefaultConfig()
	cfg.Enabled = true
	c, err := cache.New(cfg, nil, prometheus.NewRegistry())
	if err != nil {
		return 0, err
	}
	defer c.Close()
	bodies := make([][]byte, articleEntries)
	for i := range bodies {
		bodies[i] = questionBody(uint64(i))
	}
	header := http.Header{}
	visit := func(body []byte) (*cache.Visit, error) {
		normal, ok := cache.Normal(body, cfg.Normalise)
		if !ok {
			return nil, fmt.Errorf("%s has no normal form", body)
		}
		return c.Visit(ctx, &cache.Question{
			Key: cache.KeyOf(apiKey, dataset, normal), Dataset: dataset, App: "app", Control: cache.ParseControl(header),
		})
	}
	for _, body := range bodies {
		v, err := visit(body)
		if err != nil {
			return 0, err
		}
		v.Keep(header, make([]byte, answerBytes))
	}
	n, begin, used := 0, time.Now(), processorTime()
	for time.Since(begin) < long {
		for _, body := range bodies {
			v, err := visit(body)
			if err != nil {
				return 0, err
			}
			if v.Result != cache.Hit {
				return 0, fmt.Errorf("a hot answer was a %s", v.Result)
			}
			c.Count(v.Result)
		}
		n += len(bodies)
	}
	return float64(n) / (processorTime() - used).Seconds(), nil
}

// outcome is what clients got.
type outcome struct {
	total, goodCount int
	asked            int64 // retrievals at the backend
	good             float64
	p50, p95         float64 // milliseconds
}

// backend answers retrievals, so many at a time when it is limited.
type backend struct {
	limited atomic.Bool
	places  chan struct{}
	asked   atomic.Int64
	answer  []byte
}

func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	if r.URL.Path == "/health" {
		return
	}
	b.asked.Add(1)
	if b.limited.Load() {
		select {
		case b.places <- struct{}{}:
		case <-r.Context().Done():
			return
		}
		time.Sleep(backendTime)
		<-b.places
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b.answer)))
	_, _ = w.Write(b.answer)
}

// behindSlowBackend offers retrievals to a gateway for as long as said.
func behindSlowBackend(ctx context.Context, cached bool, long time.Duration) (outcome, error) {
	ctx, cancel := context.WithCancel(ctx)
	b := &backend{places: make(chan struct{}, backendPlaces), answer: []byte(`{"query":{"content":""},"records":["` + strings.Repeat("x", answerBytes) + `"]}`)}
	server := &http.Server{Handler: b}
	backendListener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		cancel()
		return outcome{}, err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer server.Close()
	wg.Go(func() { _ = server.Serve(backendListener) })

	cfg := gateway.DefaultConfig()
	upstream, err := gateway.ParseUpstream("http://" + backendListener.Addr().String())
	if err != nil {
		return outcome{}, err
	}
	cfg.Upstreams = []gateway.Upstream{upstream}
	cfg.Cache.Enabled = cached
	cfg.Drain = gateway.Drain{}
	g, err := gateway.New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		return outcome{}, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return outcome{}, err
	}
	wg.Go(func() { _ = g.Run(ctx, ln) })
	for g.Ready() != nil {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return outcome{}, context.Cause(ctx)
		}
	}

	client := &http.Client{Timeout: giveUp, Transport: &http.Transport{MaxIdleConnsPerHost: mostPending}}
	defer client.CloseIdleConnections()
	url := "http://" + ln.Addr().String() + "/v1/datasets/" + dataset + "/retrieve"
	ask := func(n uint64) bool {
		r, err := http.NewRequest(http.MethodPost, url, strings.NewReader(string(questionBody(n))))
		if err != nil {
			return false
		}
		r.Header.Set("Authorization", "Bearer "+apiKey)
		r.Header.Set("Content-Type", "application/json")
		resp, err := client.Do(r)
		if err != nil {
			return false
		}
		size, err := io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		return err == nil && resp.StatusCode == http.StatusOK && size == int64(len(b.answer))
	}
	popular := newPopularity(articleZipf, articleQueries)
	if cached {
		var left atomic.Int64
		left.Store(warmRequests)
		var warm sync.WaitGroup
		for i := range clients {
			warm.Go(func() {
				r := rand.New(rand.NewPCG(uint64(i), 2))
				for left.Add(-1) >= 0 && ctx.Err() == nil {
					ask(popular.draw(r))
				}
			})
		}
		warm.Wait()
	}
	b.limited.Store(true)
	b.asked.Store(0)

	var mu sync.Mutex
	var latencies []time.Duration
	var pending sync.WaitGroup
	var inWork atomic.Int64
	var o outcome
	r := rand.New(rand.NewPCG(7, 3))
	note := func(d time.Duration, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		if !ok {
			d = max(d, giveUp)
		}
		if d <= goodTime {
			o.goodCount++
		}
		latencies = append(latencies, d)
	}
	begin := time.Now()
	for due := time.Duration(0); due < long && ctx.Err() == nil; due += time.Duration(r.ExpFloat64() / offered * float64(time.Second)) {
		time.Sleep(time.Until(begin.Add(due)))
		n := popular.draw(r)
		o.total++
		if inWork.Add(1) > mostPending {
			inWork.Add(-1)
			note(giveUp, false)
			continue
		}
		pending.Go(func() {
			defer inWork.Add(-1)
			ok := ask(n)
			note(time.Since(begin.Add(due)), ok)
		})
	}
	pending.Wait()
	o.asked = b.asked.Load()
	o.good = float64(o.goodCount) / long.Seconds()
	slices.Sort(latencies)
	at := func(q float64) float64 {
		return float64(latencies[min(int(q*float64(len(latencies))), len(latencies)-1)].Microseconds()) / 1000
	}
	if len(latencies) > 0 {
		o.p50, o.p95 = at(.5), at(.95)
	}
	return o, context.Cause(ctx)
}
