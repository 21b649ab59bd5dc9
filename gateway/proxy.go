package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"fournines/gateway/admit"
	"fournines/gateway/balance"
	"fournines/gateway/conversation"
	"fournines/gateway/dify"
	"fournines/gateway/jobs"
	"fournines/gateway/limit"
	"fournines/internal/http1"
	"fournines/internal/reactor"
)

const (
	// prefetchBytes is how large the answer to an idempotent request may be to
	// be taken in whole before the client gets its first byte, so that a cut
	// in the middle can still be repaired by asking another instance.
	prefetchBytes = 64 << 10
	copyBytes     = 32 << 10
	// statusClientGone is what the log and metrics show for a client that left.
	statusClientGone = 499
)

// copyBuffers are for moving bodies.
var copyBuffers = sync.Pool{New: func() any { return new([copyBytes]byte) }}

// exchange is one client's request on its way.
type exchange struct {
	g     *Gateway
	set   *settings
	w     http.ResponseWriter
	r     *http.Request
	rc    *http.ResponseController
	ctx   context.Context // ends with the client, the gateway or the request's time
	class dify.Class
	asked dify.Fields // what the body says
	id    string
	app   app // who the app key belongs to
	body  body
	start time.Time

	direct *http1.Reply  // what w is, when the connection is not net/http's
	loop   *reactor.Loop // where its stream waits; nil: on this goroutine

	upgrade        bool
	tried          []*balance.Endpoint
	attempts       int
	leaves         int                // attempts given up for slowness
	restarts       int                // attempts made although the one before may have begun to work
	internalErrors int                // answers with status 500
	unblocked      bool               // asked for as a stream, for a client that wants one answer
	turn           *conversation.Turn // nil when there is nothing to wait for
	asking         time.Time          // when the current attempt began
	limits         limit.Decision
	meter          meter

	span *requestSpan // nil: not traced

	status   int
	zone     string // of the instance that answered
	endpoint string
	answered int           // the status it answered with
	broken   bool          // the answer began well and broke off, or ended in an error event of ours
	ticket   admit.Ticket  // its way to a place at an instance
	learnt   bool          // the app has a queue of its own, or never gets one
	sent     int64         // bytes of the answer's body
	ttfc     bool          // the first content has been counted
	first    time.Duration // from start to the first content; 0 before

	trace *jobs.Trace // of a job's request; nil: it is none
	know  retrieval   // what it has to do with knowledge
}

// ServeHTTP implements http.Handler.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.inFlight.Add(1)
	g.m.inFlight.Inc()
	set := g.settings.Load()
	x := &exchange{
		g: g, set: set, w: w, r: r, rc: http.NewResponseController(w), start: time.Now(),
		class: dify.Classify(r.Method, r.URL.Path), id: requestID(r.Header),
	}
	x.span = g.beginSpan(x)
	if x.direct, _ = w.(*http1.Reply); x.direct != nil {
		x.direct.SetWriteTimeout(set.Limits.WriteTimeout)
	}
	p := x.handle()
	g.m.inFlight.Dec()
	g.inFlight.Add(-1)
	if p != nil {
		panic(http.ErrAbortHandler) // the server closes this connection, or resets this stream
	}
}

// handle serves x and accounts for it; what it returns is what the handler
// panicked with.
func (x *exchange) handle() (p any) {
	defer func() {
		p = recover()
		x.g.admit.Close(&x.ticket)
		x.account()
		if p != nil && p != http.ErrAbortHandler { //nolint:errorlint // a panic value, compared as net/http does
			x.g.log.Error("handler panicked", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	x.serve()
	return nil
}

func (x *exchange) serve() {
	r := x.r
	if r.ProtoMajor == 1 && x.direct == nil {
		// What the connection's last answer left would hit this one.
		_ = x.rc.SetWriteDeadline(time.Time{})
	}
	if r.Method == http.MethodConnect || r.Method == http.MethodTrace {
		x.fail(dify.ErrMethod)
		return
	}
	// HTTP/2 needs no Content-Length, and net/http believes the first of several
	// and takes one that is no number for none.
	if cl := r.Header["Content-Length"]; r.ProtoMajor >= 2 && len(cl) > 0 && (len(cl) > 1 || cl[0] != strconv.FormatInt(r.ContentLength, 10)) {
		x.fail(dify.ErrBadBody)
		return
	}
	// A message with Transfer-Encoding and Content-Length may be read
	// differently by something in front. The chunked reading is the right one,
	// and closing the connection after it leaves nothing to smuggle.
	if len(r.TransferEncoding) > 0 && r.ProtoMajor == 1 {
		x.w.Header()["Connection"] = []string{"close"}
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), x.set.Limits.RequestTimeout, errRequestTimeout)
	defer cancel()
	x.ctx = ctx
	x.app = x.set.apps.find(dify.KeyID(dify.AppKey(r.Header)))
	x.upgrade = upgradeType(r.Header) != "" && r.ProtoMajor == 1
	outgoing(r, x.id)

	var err error
	if x.body, err = readBody(x.w, r, &x.set.Limits); err != nil {
		x.failErr(err)
		return
	}
	x.identify()
	if err := x.admit(); err != nil {
		x.failErr(err)
		return
	}
	defer x.settle()
	if x.serveLane() || x.serveCached() {
		return
	}
	defer x.indexing()
	x.unblock()
	if err := x.takeTurn(); err != nil {
		x.failErr(err)
		return
	}
	defer x.endTurn()
	x.g.budget.Request()
	up, err := x.send()
	x.wrote(up, err)
	if err != nil {
		x.failErr(err)
		return
	}
	x.heard(up)
	if !x.class.Streams() && (up.resp.StatusCode == http.StatusSwitchingProtocols || isEventStream(up.resp.Header)) {
		x.ticket.Slot.Content(false) // it may be silent for as long as it likes
	}
	switch {
	case up.resp.StatusCode == http.StatusSwitchingProtocols:
		x.serveUpgrade(up)
	case isEventStream(up.resp.Header):
		x.serveStream(up)
	default:
		defer up.close()
		x.serveBody(up)
	}
}

// heard notes whose answer the client gets.
func (x *exchange) heard(up *upstream) {
	x.zone, x.endpoint, x.answered = up.ep.Zone, up.ep.Name, up.resp.StatusCode
}

// identify learns from the body, or from the query of a request without one, who
// asks and how.
func (x *exchange) identify() {
	switch {
	case x.class.Streams() || len(x.body.held) > 0 && isJSON(x.r.Header):
		x.asked = dify.Peek(x.body.held, x.body.complete())
	case x.r.URL.RawQuery != "":
		q := x.r.URL.Query()
		x.asked.User, x.asked.Conversation = q.Get("user"), q.Get("conversation_id")
	}
}

func isJSON(h http.Header) bool {
	mediaType, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	return strings.EqualFold(strings.TrimSpace(mediaType), "application/json")
}

func isEventStream(h http.Header) bool {
	ct := h.Get("Content-Type")
	if len(ct) < len("text/event-stream") || !strings.EqualFold(ct[:len("text/event-stream")], "text/event-stream") {
		return false
	}
	ce := h.Get("Content-Encoding")
	return ce == "" || strings.EqualFold(ce, "identity") // a packed stream cannot be looked into
}

// target is the request target as the instance gets it: the client's own where
// nobody can read it in two ways.
func (x *exchange) target() string {
	t := x.r.RequestURI
	if len(t) > 0 && t[0] == '/' {
		plain := true
		for i := range len(t) {
			if c := t[i]; c <= ' ' || c >= 0x7f || c == '#' || c == '"' || c == '<' || c == '>' || c == '\\' {
				plain = false
				break
			}
		}
		if plain {
			return t
		}
	}
	return x.r.URL.RequestURI()
}

// commit sends the header of the answer.
func (x *exchange) commit(status int, header http.Header) {
	h := x.w.Header()
	stripHopByHop(header)
	for name, values := range header {
		h[name] = values
	}
	if _, ok := h["X-Request-Id"]; !ok {
		h["X-Request-Id"] = []string{x.id}
	}
	h["X-Fournines-Zone"] = x.set.zoneHeader
	h["X-Upstream-Zone"] = []string{x.zone}
	if x.know.result != "" {
		h[cacheHeader] = []string{string(x.know.result)}
	}
	if x.g.draining.Load() { // on HTTP/2 the server turns it into GOAWAY
		h["Connection"] = []string{"close"}
	}
	x.status = status
	x.w.WriteHeader(status)
}

// serveBody passes an answer that is not an event stream.
func (x *exchange) serveBody(up *upstream) {
	resp := up.resp
	x.commit(resp.StatusCode, resp.Header)
	if up.held != nil {
		_ = x.writeBody(*up.held)
		x.content()
		return
	}
	buf := copyBuffers.Get().(*[copyBytes]byte)
	defer copyBuffers.Put(buf)
	flush := resp.ContentLength < 0
	for {
		n, err := resp.Body.Read(buf[:])
		if n > 0 {
			x.content()
			if x.writeBody(buf[:n]) != nil {
				return
			}
			if flush && x.flush() != nil {
				return
			}
		}
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			if x.ctx.Err() == nil {
				x.g.pool.Report(up.ep, balance.Cut)
				x.broken = true
			}
			// The client must not take half an answer for a whole one.
			panic(http.ErrAbortHandler)
		}
	}
}

func (x *exchange) writeBody(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	x.limitWrite()
	x.meter.take(p)
	x.know.take(p)
	n, err := x.w.Write(p)
	x.sent += int64(n)
	x.unlimitWrite()
	return err
}

func (x *exchange) flush() error {
	x.limitWrite()
	defer x.unlimitWrite()
	return x.rc.Flush()
}

// limitWrite gives the client WriteTimeout to take what is written next.
func (x *exchange) limitWrite() {
	if x.direct != nil {
		return // it does so by itself
	}
	_ = x.rc.SetWriteDeadline(time.Now().Add(x.set.Limits.WriteTimeout))
}

// unlimitWrite ends that: an HTTP/2 stream is reset when its deadline passes,
// even when nothing is being written. On HTTP/1 the deadline only matters to
// the next write, which moves it.
func (x *exchange) unlimitWrite() {
	if x.r.ProtoMajor >= 2 {
		_ = x.rc.SetWriteDeadline(time.Time{})
	}
}

// content notes the first content of the answer.
func (x *exchange) content() {
	if x.ttfc {
		return
	}
	x.ttfc = true
	x.workOver()
	x.span.event("first content")
	x.first = max(1, time.Since(x.start))
	x.g.m.firstContent.WithLabelValues(x.class.String()).Observe(x.first.Seconds())
}

// failErr answers with what err means.
func (x *exchange) failErr(err error) {
	var answer dify.Error
	if e, ok := refusal(err); ok {
		err = e
	}
	switch {
	case errors.As(err, &answer):
		x.fail(answer)
	case errors.Is(err, errDraining):
		x.fail(dify.ErrDraining)
	case errors.Is(err, errRequestTimeout):
		x.fail(dify.ErrTimeout)
	default: // the client is gone; nobody reads an answer
		x.status = statusClientGone
		x.g.m.disconnects.WithLabelValues(x.class.String()).Inc()
	}
}

func (x *exchange) fail(e dify.Error) {
	h := x.w.Header()
	h["X-Request-Id"] = []string{x.id}
	h["X-Fournines-Zone"] = x.set.zoneHeader
	if x.g.draining.Load() || x.r.ProtoMajor == 1 && (e.Status == http.StatusRequestEntityTooLarge || e.Status == http.StatusRequestTimeout) {
		h["Connection"] = []string{"close"}
	}
	x.status, x.zone = e.Status, ""
	x.limitWrite()
	e.Write(x.w)
	x.unlimitWrite()
}
