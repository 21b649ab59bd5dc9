package console

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// span is a length of history that can be asked for.
type span struct {
	length, step time.Duration
	// fresh is how long an answer is given again.
	fresh time.Duration
}

// spans by their names in the API. Each has some 240 points, what a chart can show.
var spans = map[string]span{
	"15m": {15 * time.Minute, 5 * time.Second, 4 * time.Second},
	"1h":  {time.Hour, 15 * time.Second, 10 * time.Second},
	"6h":  {6 * time.Hour, 90 * time.Second, 30 * time.Second},
	"24h": {24 * time.Hour, 6 * time.Minute, time.Minute},
	"7d":  {7 * 24 * time.Hour, 42 * time.Minute, 5 * time.Minute},
}

// maxSeries bounds the answers that are kept: spans of the overview and of the
// components and apps that somebody looks at.
const maxSeries = 200

// Series are lines over time with common points. A value that is not known is null.
type Series struct {
	// Step is the time between two points, in seconds.
	Step int64 `json:"step"`
	// T are the points, in Unix seconds.
	T []int64 `json:"t"`
	// Lines by the name of their figure.
	Lines map[string][]*float64 `json:"lines"`
}

// subject is whose lines are asked for; the zero subject is the installation.
type subject struct{ span, component, app string }

// seriesCache asks once for what many pages want to know.
type seriesCache struct {
	ask func(ctx context.Context, of subject) (*Series, error)

	mu   sync.Mutex
	kept map[subject]*keptSeries
}

type keptSeries struct {
	ready chan struct{} // closed when the rest is set
	at    time.Time
	json  []byte
	err   error
}

// get returns the lines of a subject as JSON. Who comes while they are being
// asked for waits for the same answer.
func (c *seriesCache) get(ctx context.Context, of subject) ([]byte, error) {
	now := time.Now()
	c.mu.Lock()
	k := c.kept[of]
	if k == nil || k.stale(now, spans[of.span].fresh) {
		k = &keptSeries{ready: make(chan struct{})}
		c.keep(of, k, now)
		// The answer is for all who wait, so it does not end with the first of them.
		go c.fetch(context.WithoutCancel(ctx), of, k)
	}
	c.mu.Unlock()
	select {
	case <-k.ready:
		return k.json, k.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// stale tells if a finished answer is too old. An error is asked again.
func (k *keptSeries) stale(now time.Time, fresh time.Duration) bool {
	select {
	case <-k.ready:
		return k.err != nil || now.Sub(k.at) > fresh
	default:
		return false
	}
}

// keep is called with mu held. When there are too many, those that are finished
// and stale go; they are cheap to ask for again.
func (c *seriesCache) keep(of subject, k *keptSeries, now time.Time) {
	if c.kept == nil {
		c.kept = map[subject]*keptSeries{}
	}
	if len(c.kept) >= maxSeries {
		for other, o := range c.kept {
			if o.stale(now, spans[other.span].fresh) {
				delete(c.kept, other)
			}
		}
		if len(c.kept) >= maxSeries {
			clear(c.kept)
		}
	}
	c.kept[of] = k
}

func (c *seriesCache) fetch(ctx context.Context, of subject, k *keptSeries) {
	defer close(k.ready)
	ctx, cancel := context.WithTimeout(ctx, 4*askTimeout)
	defer cancel()
	series, err := c.ask(ctx, of)
	if err == nil {
		k.json, err = json.Marshal(series)
	}
	k.at, k.err = time.Now(), err
}

// unknownError is a subject that does not exist.
type unknownError struct{ what, name string }

func (e *unknownError) Error() string { return fmt.Sprintf("there is no %s %q", e.what, e.name) }

// check refuses subjects that do not exist, so that nobody can fill the cache
// or ask Prometheus for something else.
func (s *Server) check(of subject) error {
	if _, known := spans[of.span]; !known {
		return &unknownError{"range", of.span}
	}
	s.mu.Lock()
	_, app := s.measured.apps[of.app]
	s.mu.Unlock()
	if of.app != "" && !app {
		return &unknownError{"app", of.app}
	}
	if _, known := s.owners()[of.component]; of.component != "" && !known {
		return &unknownError{"component", of.component}
	}
	return nil
}

// askSeries asks Prometheus for the lines of a subject.
func (s *Server) askSeries(ctx context.Context, of subject) (*Series, error) {
	figures, selection := charts, func(figure) string { return "" }
	switch {
	case of.component != "":
		figures, selection = s.ofComponent(of.component)
	case of.app != "":
		figures, selection = appFigures, func(f figure) string { return f.only(of.app) }
	}
	sp := spans[of.span]
	window := max(rateWindow(s.cfg.ScrapeInterval), sp.step)
	// Points on whole steps stay the same points in the next answer.
	end := time.Now().Truncate(sp.step)
	start := end.Add(-sp.length)
	out := &Series{Step: int64(sp.step / time.Second), Lines: map[string][]*float64{}}
	for at := start; !at.After(end); at = at.Add(sp.step) {
		out.T = append(out.T, at.Unix())
	}
	var mu sync.Mutex
	var questions []func(context.Context) error
	for _, f := range figures {
		questions = append(questions, func(ctx context.Context) error {
			lines, err := s.prom.matrix(ctx, fill(f.expr, window, selection(f)), start, end, sp.step)
			if err != nil || len(lines) == 0 {
				return err
			}
			values := make([]*float64, len(out.T))
			for _, p := range lines[0].points {
				if i, found := slices.BinarySearch(out.T, int64(p[0])); found {
					values[i] = &p[1]
				}
			}
			mu.Lock()
			defer mu.Unlock()
			out.Lines[f.name] = values
			return nil
		})
	}
	return out, together(ctx, questions)
}

// ofComponent returns the figures of a component's kind and how they select it.
func (s *Server) ofComponent(name string) ([]figure, func(figure) string) {
	kind, host := "", ""
	for key, o := range s.owners() {
		if o.name != name {
			continue
		}
		kind = o.kind
		if rest, is := strings.CutPrefix(key, hostKey); is {
			host = rest
		}
	}
	var out []figure
	for _, f := range componentFigures {
		if f.kind == kind {
			out = append(out, f)
		}
	}
	return out, func(f figure) string {
		if f.by == "slave_ip" {
			return f.only(host)
		}
		return f.only(name)
	}
}
