package pgproxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"fournines/internal/pgwire"
	"fournines/pgproxy/fence"
	"fournines/pgproxy/primary"
)

// errNoPrimary says that there is nobody to ask for a position.
var errNoPrimary = errors.New("no primary")

// fenceQuestion is the whole message.
var fenceQuestion = pgwire.AppendQuery(nil, fence.SQL)

// line is the connection on which the fence asks the primary for its position.
// It lasts as long as the reign. The server answers in order, so the answers
// need not be waited for before the next question is sent.
type line struct {
	p      *Proxy
	target *primary.Target
	conn   net.Conn
	br     *bufio.Reader
	once   sync.Once
	closed chan struct{}
}

// dialLine opens a line to the present primary.
func (p *Proxy) dialLine(ctx context.Context) (fence.Line, error) {
	t := p.tracker.View().Primary
	if t == nil {
		return nil, errNoPrimary
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // a reign that ends also ends the attempt
		select {
		case <-t.Lost:
			cancel()
		case <-ctx.Done():
		}
	}()
	l := p.live.Load()
	pc, err := connect(ctx, l, t.Endpoint, l.cfg.Probe.User, l.probePW, l.cfg.Probe.Database)
	if err != nil {
		p.tracker.Kick(t.Endpoint.Address)
		return nil, err
	}
	// As in dial: nothing else may be reading.
	if err := pc.SyncConn(ctx); err != nil {
		_ = pc.Close(ctx)
		return nil, err
	}
	h, err := pc.Hijack()
	if err != nil {
		return nil, err
	}
	ln := &line{p: p, target: t, conn: h.Conn, br: bufio.NewReaderSize(h.Conn, 1<<10), closed: make(chan struct{})}
	go func() {
		select {
		case <-t.Lost:
			ln.Close()
		case <-ln.closed:
		}
	}()
	return ln, nil
}

// Current reports that the line leads to the present primary.
func (l *line) Current() bool { return l.p.tracker.View().Primary == l.target }

// Ask sends the question.
func (l *line) Ask(deadline time.Time) error {
	if err := l.conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	_, err := l.conn.Write(fenceQuestion)
	return err
}

// Answer reads the messages of one answer.
func (l *line) Answer(deadline time.Time) (pos fence.Position, err error) {
	defer func() {
		if err != nil {
			l.Close()
			l.p.tracker.Kick(l.target.Endpoint.Address)
		}
	}()
	if err := l.conn.SetReadDeadline(deadline); err != nil {
		return pos, err
	}
	seen := false
	for {
		typ, size, err := pgwire.PeekHeader(l.br)
		if err != nil {
			return pos, err
		}
		if size > l.br.Size() {
			return pos, fmt.Errorf("%w: message %q of %d bytes on the fence's line", pgwire.ErrProtocol, typ, size)
		}
		b, err := l.br.Peek(size)
		if err != nil {
			return pos, err
		}
		body := b[pgwire.HeaderLen:]
		switch typ {
		case 'D':
			values, ok := pgwire.Columns(body)
			if !ok || len(values) != 1 || values[0] == nil {
				return pos, fmt.Errorf("%w: unexpected answer to the question for a position", pgwire.ErrProtocol)
			}
			if pos.LSN, err = primary.ParseLSN(string(values[0])); err != nil {
				return pos, err
			}
			pos.Generation, seen = l.target.Generation, true
		case 'E':
			e := pgwire.ParseError(body)
			return pos, fmt.Errorf("ask for a position: %s (SQLSTATE %s)", e.Message, e.Code)
		case 'Z':
			if !seen {
				return pos, fmt.Errorf("%w: no answer to the question for a position", pgwire.ErrProtocol)
			}
			return pos, pgwire.Skip(l.br, size)
		}
		if err := pgwire.Skip(l.br, size); err != nil {
			return pos, err
		}
	}
}

// Close ends the connection; a second call does nothing.
func (l *line) Close() {
	l.once.Do(func() {
		close(l.closed)
		_ = l.conn.SetWriteDeadline(time.Now().Add(farewell))
		_, _ = l.conn.Write(pgwire.Append(nil, 'X'))
		_ = l.conn.Close()
	})
}

// farewell is how long saying goodbye may take.
const farewell = 100 * time.Millisecond
