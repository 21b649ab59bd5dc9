package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// inTime is how late the first content of a chat may be to be worth anything.
	inTime = 3 * time.Second
	// patience is how long a client waits for the first content.
	patience = 10 * time.Second
	// streamFor bounds a stream that has begun.
	streamFor = 10 * time.Second
)

// quantiles are latencies in seconds.
type quantiles []float64

// ms returns the q-quantile in milliseconds, 0 when there are none.
func (v quantiles) ms(q float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	return math.Round(s[int(q*float64(len(s)-1))]*1e4) / 10
}

// watchLag measures how late timers fire, from now until lag is called.
func watchLag(ctx context.Context) (lag func() quantiles) {
	ctx, stop := context.WithCancel(ctx)
	done := make(chan quantiles, 1)
	go func() {
		var v quantiles
		defer func() { done <- v }()
		for {
			begin := time.Now()
			select {
			case <-ctx.Done():
				return
			case <-time.After(10 * time.Millisecond):
				v = append(v, max(0, (time.Since(begin)-10*time.Millisecond).Seconds()))
			}
		}
	}()
	return func() quantiles {
		stop()
		return <-done
	}
}

// watchCPU measures how many processors this process uses, from now until cpu is
// called.
func watchCPU() (cpu func() float64) {
	used := func() time.Duration {
		var u syscall.Rusage
		if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
			return 0
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	begin, before := time.Now(), used()
	return func() float64 { return (used() - before).Seconds() / time.Since(begin).Seconds() }
}

// level is what came of one load.
type level struct {
	load    float64 // times the capacity
	seconds float64
	offered int
	good    int
	refused int // 503 or 429 from the gateway
	late    int // admitted, and too late, given up or failed
	content quantiles
	end     quantiles
}

func (l *level) goodput() float64 { return float64(l.good) / l.seconds }

func (l *level) failedShare() float64 {
	return float64(l.refused+l.late) / max(1, float64(l.offered))
}

// load sends chats in an open loop: each is due at its time, whatever became of
// those before it, and is measured from then.
type load struct {
	urls   []string
	client *http.Client
	dice   *rand.Rand
}

func newLoad(urls []string) *load {
	return &load{
		urls:   urls,
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2000, IdleConnTimeout: 5 * time.Second}},
		dice:   rand.New(rand.NewPCG(4, 2)),
	}
}

func (l *load) close() { l.client.CloseIdleConnections() }

// run offers rate chats per second for settle and then for measure, and returns
// what came of those that were due in measure.
func (l *load) run(ctx context.Context, key string, rate float64, settle, measure time.Duration) level {
	result := level{seconds: measure.Seconds()}
	var mu sync.Mutex
	var wg sync.WaitGroup
	timer := time.NewTimer(0)
	defer timer.Stop()
	begin := time.Now()
	for due, n := begin, 0; ctx.Err() == nil; n++ {
		due = due.Add(time.Duration(l.dice.ExpFloat64() / rate * float64(time.Second)))
		if due.Sub(begin) > settle+measure {
			break
		}
		think := 500 * math.Exp(.4*l.dice.NormFloat64()-.08)
		timer.Reset(time.Until(due))
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		counts := due.Sub(begin) >= settle
		wg.Go(func() {
			o := l.chat(ctx, l.urls[n%len(l.urls)], key, think, due)
			if !counts {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			result.offered++
			switch {
			case o.refused:
				result.refused++
				return
			case !o.complete || o.content > inTime:
				result.late++
			default:
				result.good++
				result.end = append(result.end, o.end.Seconds())
			}
			if o.content == 0 {
				o.content = patience
			}
			result.content = append(result.content, o.content.Seconds())
		})
	}
	wg.Wait()
	return result
}

// outcome is of one chat; times count from when it was due.
type outcome struct {
	refused, complete bool
	content, end      time.Duration
}

func (l *load) chat(ctx context.Context, url, key string, think float64, due time.Time) (o outcome) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	limit := time.AfterFunc(time.Until(due.Add(patience)), cancel)
	defer limit.Stop()
	body := fmt.Sprintf(`{"inputs":{"sim_delay_ms":%.1f},"query":"how are you?","user":"bench","response_mode":"streaming"}`, think)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/chat-messages", strings.NewReader(body))
	if err != nil {
		return o
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := l.client.Do(req)
	if err != nil {
		return o
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		_, _ = io.Copy(io.Discard, resp.Body)
		o.refused = resp.StatusCode == http.StatusServiceUnavailable || resp.StatusCode == http.StatusTooManyRequests
		return o
	}
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		if o.content == 0 {
			o.content = time.Since(due)
			limit.Reset(streamFor)
		}
		var ev struct {
			Event string `json:"event"`
		}
		if json.Unmarshal([]byte(data), &ev) != nil || ev.Event == "error" {
			return o
		}
		if ev.Event == "message_end" {
			o.end, o.complete = time.Since(due), true
		}
	}
	return o
}
