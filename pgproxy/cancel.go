package pgproxy

import (
	"context"
	"crypto/subtle"
	"io"
	"net"
	"time"

	"fournines/internal/pgwire"
)

// cancelTimeout bounds the delivery of one cancel request.
const cancelTimeout = 2 * time.Second

// cancelRequest passes a client's wish to cancel on to the server that works
// for its session at this moment. Until it is delivered the server is kept out
// of the pool, so that it cannot hit somebody else's statement.
func (p *Proxy) cancelRequest(pid uint32, key []byte) {
	p.mu.Lock()
	s := p.sessions[pid]
	p.mu.Unlock()
	if s == nil || subtle.ConstantTimeCompare(s.key[:], key) != 1 {
		return
	}
	s.mu.Lock()
	srv := s.srv
	if srv == nil || s.head == len(s.q) && !s.open {
		s.mu.Unlock()
		return
	}
	srv.holdForCancel()
	s.mu.Unlock()
	defer srv.endCancel()
	p.deliverCancel(srv)
	p.metrics.cancels.Add(1)
}

// deliverCancel returns when the server has signalled the backend: it closes
// the connection after it did.
func (p *Proxy) deliverCancel(srv *server) {
	ctx, stop := context.WithTimeout(p.hard, cancelTimeout)
	defer stop()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", srv.target.Endpoint.Address)
	if err != nil {
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(cancelTimeout))
	if _, err := conn.Write(pgwire.AppendCancel(nil, srv.pid, srv.key)); err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(conn, 16))
}

// sendCancel cancels what runs on a server whose client is gone.
func (p *Proxy) sendCancel(srv *server) {
	p.wg.Go(func() { p.deliverCancel(srv) })
}

// cancelAndClose cancels what runs on the server and then closes it.
func (p *Proxy) cancelAndClose(srv *server) {
	p.wg.Go(func() {
		p.deliverCancel(srv)
		srv.close()
	})
}
