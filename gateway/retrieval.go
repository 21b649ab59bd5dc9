package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fournines/gateway/cache"
	"fournines/gateway/dify"
)

const (
	// cacheHeader says how the cache answered; it has the words of cache.Result.
	cacheHeader = "Fournines-Cache"
	// keptAnswer is how much of a write's answer is read for its batch.
	keptAnswer = 64 << 10
	// maxWatches is how many indexings are watched at a time; of more only
	// cache.settle is waited for.
	maxWatches = 256
	// The watcher asks for an indexing after watchFirst, then ever more rarely
	// until it is every watchMost.
	watchFirst = 250 * time.Millisecond
	watchMost  = 2 * time.Second
)

var (
	// errSlow ends the asking of instances for a request with a stale answer.
	errSlow = errors.New("the instances are slow, and there is a stale answer")
	// errNotCached is the answer to only-if-cached, as RFC 9111 has it.
	errNotCached = dify.Error{Code: "not_cached", Message: "The answer is not in the gateway's cache, and the request wants no instance to be asked.", Status: http.StatusGatewayTimeout}
)

// retrieval is what a request has to do with knowledge.
type retrieval struct {
	result  cache.Result // "": the cache had no say
	writes  bool         // it changes knowledge
	dataset string       // which; "" is any
	answer  []byte       // the beginning of a write's answer
}

// watchers are the indexings being watched.
type watchers struct {
	count  prometheus.Gauge
	life   context.Context
	end    context.CancelFunc
	mu     sync.Mutex
	n      int
	closed bool
	wg     sync.WaitGroup
}

func newWatchers() *watchers {
	life, end := context.WithCancel(context.Background())
	return &watchers{life: life, end: end, count: prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: "fournines", Subsystem: "gateway", Name: "cache_indexings_watched",
		Help: "Indexings of documents whose end is waited for to make the answers of their data set void.",
	})}
}

// newCache makes the cache of retrievals, and what watches indexings.
func (g *Gateway) newCache(cfg cache.Config, reg prometheus.Registerer) (err error) {
	g.watches = newWatchers()
	if err := reg.Register(g.watches.count); err != nil {
		return err
	}
	g.cache, err = cache.New(cfg, g.redis, reg)
	return err
}

// closeCache ends the watching, then the cache.
func (g *Gateway) closeCache() {
	g.watches.mu.Lock()
	g.watches.closed = true
	g.watches.mu.Unlock()
	g.watches.end()
	g.watches.wg.Wait()
	g.cache.Close()
}

// question returns what the cache can be asked, nil when the request is none of
// its business: it answers who asks with an API key and a body that is all here.
func (x *exchange) question() *cache.Question {
	if x.class != dify.Retrieve || !x.set.Cache.Enabled {
		return nil
	}
	dataset, ok := dify.Retrieval(x.r.Method, x.r.URL.Path)
	key := dify.AppKey(x.r.Header)
	if !ok || key == "" || x.r.URL.RawQuery != "" || !x.body.complete() || !isJSON(x.r.Header) || len(x.r.Header["Content-Encoding"]) > 0 {
		return nil
	}
	normal, ok := cache.Normal(x.body.held, x.set.Cache.Normalise)
	if !ok {
		return nil
	}
	// Dify tells a browser whose page may read the answer.
	place := dataset + " " + strings.Join(x.r.Header["Origin"], " ")
	return &cache.Question{
		Key: cache.KeyOf(key, place, normal), Dataset: dataset, App: x.app.id, Control: cache.ParseControl(x.r.Header),
	}
}

// serveCached answers a retrieval from the cache, or asks an instance and keeps
// what it says. It tells whether the request has been answered.
func (x *exchange) serveCached() bool {
	q := x.question()
	if q == nil {
		if x.class != dify.Read && x.set.Cache.Enabled {
			x.know.dataset, x.know.writes = dify.KnowledgeWrite(x.r.Method, x.r.URL.Path)
		}
		return false
	}
	v, err := x.g.cache.Visit(x.ctx, q)
	if err != nil {
		x.failErr(err)
		return true
	}
	defer func() { x.g.cache.Count(x.know.result) }()
	x.know.result = v.Result
	switch v.Result {
	case cache.Absent:
		x.w.Header()[cacheHeader] = []string{string(cache.Absent)}
		x.fail(errNotCached)
	case cache.Hit, cache.Shared, cache.Stale:
		x.serveEntry(v.Entry)
	default:
		x.fetch(v)
	}
	return true
}

// serveEntry answers from memory.
func (x *exchange) serveEntry(e *cache.Entry) {
	h := x.w.Header()
	for name, values := range e.Header {
		h[name] = values
	}
	h["Age"] = []string{strconv.FormatInt(int64(x.g.cache.Age(e)/time.Second), 10)}
	h["Content-Length"] = []string{strconv.Itoa(len(e.Body))}
	x.commit(http.StatusOK, nil)
	_ = x.writeBody(e.Body)
	x.content()
}

// fetch asks an instance; when all fail, what is stale is the answer.
func (x *exchange) fetch(v *cache.Visit) {
	defer func() {
		if x.r.Context().Err() != nil {
			v.Left()
		} else {
			v.End()
		}
	}()
	// One form for all who may get the answer.
	delete(x.r.Header, "Accept-Encoding")
	whole := x.ctx
	inTime := func() {}
	if after, ok := v.HasStale(); ok {
		ctx, cancel := context.WithCancelCause(whole)
		defer cancel(nil)
		slow := time.AfterFunc(after, func() { cancel(errSlow) })
		defer slow.Stop()
		inTime = func() { slow.Stop() }
		x.ctx = ctx
	}
	x.g.budget.Request()
	up, err := x.send()
	if err == nil && up.resp.StatusCode < http.StatusInternalServerError {
		v.Succeeded()
		x.heard(up)
		defer up.close()
		x.serveFetched(v, up, inTime)
		return
	}
	inTime()
	failed := err == nil || x.r.Context().Err() == nil && whole.Err() == nil
	if failed {
		if e := v.Failed(); e != nil {
			if up != nil {
				up.close()
			}
			x.ctx, x.know.result = whole, cache.Stale
			x.serveEntry(e)
			return
		}
	}
	if err != nil {
		x.failErr(err)
		return
	}
	x.heard(up)
	defer up.close()
	x.serveBody(up)
}

// serveFetched passes an instance's answer on, and keeps it when it may be kept.
// inTime is called when the answer is there, as far as it is waited for.
func (x *exchange) serveFetched(v *cache.Visit, up *upstream, inTime func()) {
	resp := up.resp
	if isEventStream(resp.Header) || !v.Keeps(resp.StatusCode, resp.Header, resp.ContentLength) {
		inTime()
		x.serveBody(up)
		return
	}
	var body []byte
	if up.held != nil {
		body = *up.held
	} else {
		b, err := io.ReadAll(io.LimitReader(resp.Body, v.MaxBytes()+1))
		inTime()
		if err != nil {
			if e := v.Failed(); e != nil {
				x.zone, x.endpoint, x.know.result = "", "", cache.Stale
				x.serveEntry(e)
				return
			}
			x.failErr(failure{err: err, died: true}.answer())
			return
		}
		if int64(len(b)) > v.MaxBytes() {
			v.TooLarge()
			resp.Body = readCloser{io.MultiReader(bytes.NewReader(b), resp.Body), resp.Body}
			x.serveBody(up)
			return
		}
		body = b
	}
	header := http.Header{}
	for name, values := range resp.Header {
		switch name {
		case "X-Request-Id", "Age", "Date", "Content-Length", cacheHeader: // of the request, or written anew
		default:
			header[name] = values
		}
	}
	stripHopByHop(header)
	v.Keep(header, body)
	up.held = &body
	x.serveBody(up)
}

type readCloser struct {
	io.Reader
	io.Closer
}

// wrote makes the cache forget what a write may have changed, before its client
// learns that it has been carried out.
func (x *exchange) wrote(up *upstream, err error) {
	if !x.know.writes {
		return
	}
	switch {
	case up != nil && up.resp.StatusCode >= 400 && up.resp.StatusCode < 500:
		x.know.writes = false // refused
		return
	case err != nil && x.attempts == 0:
		x.know.writes = false
		return
	}
	// Whether its client still waits makes no difference to others.
	x.g.cache.Wrote(context.WithoutCancel(x.ctx), x.know.dataset)
}

// take keeps the beginning of a write's answer.
func (k *retrieval) take(p []byte) {
	if k.writes && len(k.answer) < keptAnswer {
		k.answer = append(k.answer, p[:min(len(p), keptAnswer-len(k.answer))]...)
	}
}

// indexing watches the indexing that a write has begun.
func (x *exchange) indexing() {
	if !x.know.writes || x.know.dataset == "" || x.status < 200 || x.status > 299 {
		return
	}
	path := dify.IndexingPath(x.r.URL.Path, x.know.dataset, x.know.answer)
	if path == "" {
		return
	}
	header := http.Header{}
	for _, name := range [...]string{"Authorization", "Cookie", "X-Csrf-Token"} {
		if values := x.r.Header[name]; values != nil {
			header[name] = values
		}
	}
	x.g.watch(x.know.dataset, path, x.r.Host, header)
}

// watch asks for an indexing as its client would, until it is over.
func (g *Gateway) watch(dataset, path, host string, header http.Header) {
	w := g.watches
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || w.n == maxWatches {
		return
	}
	w.n++
	w.count.Inc()
	w.wg.Go(func() {
		defer func() {
			w.mu.Lock()
			w.n--
			w.mu.Unlock()
			w.count.Dec()
		}()
		ctx, cancel := context.WithTimeout(w.life, g.settings.Load().Cache.IndexingTimeout)
		defer cancel()
		for pause := watchFirst; ; pause = min(pause*3/2, watchMost) {
			timer := time.NewTimer(pause)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return
			}
			status, answer := g.ask(ctx, path, host, header)
			over, ok := dify.IndexingOver(answer)
			switch {
			case ctx.Err() != nil, status >= 400 && status < 500 && status != http.StatusTooManyRequests:
				return // it cannot be known; cache.settle has to do
			case status == http.StatusOK && ok && over:
				g.cache.Settled(ctx, dataset)
				return
			}
			g.cache.Settling(ctx, dataset)
		}
	})
}

// internalKey marks requests that the gateway makes itself.
type internalKey struct{}

// ask makes a request through this gateway, without its limits.
func (g *Gateway) ask(ctx context.Context, path, host string, header http.Header) (status int, answer []byte) {
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, internalKey{}, true), 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, path, nil)
	if err != nil {
		return 0, nil
	}
	r.RequestURI, r.Host, r.Header = path, host, header.Clone()
	w := &answerWriter{header: http.Header{}}
	func() {
		defer func() { _ = recover() }() // http.ErrAbortHandler: the answer broke off
		g.ServeHTTP(w, r)
	}()
	return w.status, w.body.Bytes()
}

// answerWriter takes in an answer of bounded size.
type answerWriter struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (w *answerWriter) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter.
func (w *answerWriter) WriteHeader(status int) { w.status = status }

// Write implements http.ResponseWriter. What is too much is dropped.
func (w *answerWriter) Write(p []byte) (int, error) {
	w.body.Write(p[:min(len(p), max(0, maxIndexing-w.body.Len()))])
	return len(p), nil
}

// maxIndexing bounds what is read about an indexing; a document takes 500 bytes.
const maxIndexing = 1 << 20
