package gateway

import (
	"context"
	"net"
	"net/http"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"fournines/internal/reactor"
)

// arrival is how a request's connection came, for requests in clear text. It
// travels in the connection's context.
type arrival struct {
	base context.Context // the server's; the request's own ends with its handler
	conn *net.TCPConn
}

type arrivalKey struct{}

// arrived is the server's ConnContext.
func arrived(ctx context.Context, c net.Conn) context.Context {
	tcp, ok := c.(*net.TCPConn)
	if p, proxied := c.(proxiedConn); proxied {
		// Its header is read. It ends with its stream: given back, it would have
		// lost its client's address.
		tcp, ok = p.TCPConn()
	}
	if ok {
		return context.WithValue(ctx, arrivalKey{}, &arrival{ctx, tcp})
	}
	return ctx
}

// departure lets an exchange outlive its handler: when its stream begins, the
// handler returns, and with it go net/http's goroutines and buffers. The
// exchange runs on a goroutine of its own from the start, because what it has
// deferred must not happen before its end.
type departure struct {
	*arrival
	loop   *reactor.Loop
	ctx    context.Context // stands in for the request's
	cancel context.CancelCauseFunc
	attend func() bool   // ends the watch on the request's own context
	left   chan struct{} // closed when the handler may return
	broken bool          // it has to panic then
}

// loops are where silent streams wait: one for each processor, each with the
// streams that it was given.
type loops struct {
	all  []*reactor.Loop
	next atomic.Uint32
}

// pick returns the loop for another stream; nil where there is none.
func (l *loops) pick() *reactor.Loop {
	if l == nil {
		return nil
	}
	return l.all[int(l.next.Add(1))%len(l.all)]
}

// runLoops runs them until ctx ends.
func (g *Gateway) runLoops(ctx context.Context, wg *sync.WaitGroup) {
	l := &loops{}
	for range runtime.GOMAXPROCS(0) {
		loop, err := reactor.New()
		if err != nil {
			g.log.Info("streams wait on goroutines of their own", "err", err)
			break
		}
		l.all = append(l.all, loop)
		wg.Go(func() {
			if err := loop.Run(ctx); err != nil {
				g.log.Error("a loop of silent streams has failed", "err", err)
			}
		})
	}
	if len(l.all) > 0 {
		g.loops.Store(l)
	}
}

// departure is nil for requests that stay with their handler: those of which no
// stream is expected, and those over HTTP/2, TLS or HTTP/1.0.
func (g *Gateway) departure(x *exchange) *departure {
	if g.loops.Load() == nil || g.back.Load() == nil || !x.class.Streams() || x.r.Method != http.MethodPost || x.r.ProtoMajor != 1 || x.r.ProtoMinor != 1 {
		return nil
	}
	a, ok := x.r.Context().Value(arrivalKey{}).(*arrival)
	if !ok {
		return nil
	}
	d := &departure{arrival: a, loop: g.loops.Load().pick(), left: make(chan struct{})}
	d.ctx, d.cancel = context.WithCancelCause(a.base)
	own := x.r.Context()
	d.attend = context.AfterFunc(own, func() { d.cancel(context.Cause(own)) })
	return d
}

// run serves x on a goroutine of its own until it has ended or left.
func (d *departure) run(x *exchange) {
	go func() {
		p := x.handle()
		x.g.done()
		d.cancel(nil)
		if x.direct == nil {
			d.attend()
			d.broken = p != nil
			close(d.left)
		}
	}()
	<-d.left
	if d.broken {
		panic(http.ErrAbortHandler)
	}
}

// detach takes the client's connection over from net/http and lets the handler
// return. Where that is not possible nothing changes.
func (x *exchange) detach() {
	d := x.departure
	if d == nil || x.direct != nil || !x.body.complete() {
		return
	}
	fd := socket(d.conn)
	if fd < 0 {
		return
	}
	conn, buffered, err := x.rc.Hijack()
	if err != nil {
		x.g.log.Debug("connection not taken over", "id", x.id, "err", err)
		return
	}
	w := &direct{conn: d.conn, fd: fd, header: x.w.Header(), close: x.r.Close || conn != net.Conn(d.conn)}
	if buffered.Reader.Buffered() > 0 {
		w.close = true // who has sent ahead sends again
	}
	x.w, x.rc, x.direct = w, http.NewResponseController(w), w
	x.r.Body = http.NoBody // or net/http's buffers would live on
	d.attend()
	w.watch, err = d.loop.Add(fd, 0, func(reactor.Events) reactor.Next {
		d.cancel(context.Canceled)
		return reactor.Stop
	})
	if err != nil {
		x.g.log.Debug("connection not watched", "id", x.id, "err", err)
	}
	close(d.left)
}

// socket returns c's descriptor, or -1.
func socket(c *net.TCPConn) int {
	fd := -1
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(u uintptr) { fd = int(u) })
	}
	return fd
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
		if x.direct != nil {
			x.limitWrite()
			// A gateway that drains does not close here either, unless the answer
			// said so: its client may be sending the next request already.
			if x.direct.end(p == nil) {
				x.g.back.Load().give(x.direct.conn)
			}
		}
	}()
	x.serve()
	return nil
}
