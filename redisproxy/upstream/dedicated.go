package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"
	"time"

	"fournines/internal/resp"
)

// maxIdleDedicated is how many unused dedicated connections a node keeps.
const maxIdleDedicated = 16

// Dedicated is a connection that one client has for itself. Apart from Close,
// its methods are for one goroutine.
type Dedicated struct {
	// Node is the server.
	Node *Node
	// Version is the protocol version of the replies.
	Version int
	// ID is the server's number of this connection, for CLIENT UNBLOCK.
	ID int64

	conn net.Conn
	rd   *resp.ReplyReader
}

// Dedicated takes an idle dedicated connection or opens one. An error wraps
// ErrNotSent or ErrBusy.
func (n *Node) Dedicated(ctx context.Context, version int) (*Dedicated, error) {
	return n.take(ctx, version, false)
}

// Control is Dedicated without the limit, for the proxy's own short questions.
func (n *Node) Control(ctx context.Context) (*Dedicated, error) { return n.take(ctx, 2, true) }

func (n *Node) takeIdle(version int) *Dedicated {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := len(n.idle) - 1; i >= 0; i-- {
		if d := n.idle[i]; d.Version == version {
			n.idle = append(n.idle[:i], n.idle[i+1:]...)
			return d
		}
	}
	return nil
}

func (n *Node) take(ctx context.Context, version int, control bool) (*Dedicated, error) {
	for d := n.takeIdle(version); d != nil; d = n.takeIdle(version) {
		if d.open() {
			return d, nil
		}
		d.Close()
	}
	n.mu.Lock()
	if !control && len(n.dedicated)-len(n.idle)+n.opening >= n.pool.cfg.MaxDedicated {
		n.mu.Unlock()
		return nil, fmt.Errorf("%w: %d blocking or stateful clients at %s", ErrBusy, n.pool.cfg.MaxDedicated, n.Addr)
	}
	n.opening++
	n.mu.Unlock()
	d, err := n.openDedicated(ctx, version)
	n.mu.Lock()
	n.opening--
	if err == nil {
		n.dedicated[d] = struct{}{}
	}
	n.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotSent, err)
	}
	n.pool.cfg.Opened("dedicated")
	return d, nil
}

func (n *Node) openDedicated(ctx context.Context, version int) (*Dedicated, error) {
	if err := n.pool.ctx.Err(); err != nil {
		return nil, errClosed
	}
	conn, rd, err := n.dial(ctx, version)
	if err != nil {
		return nil, err
	}
	d := &Dedicated{Node: n, Version: version, conn: conn, rd: rd}
	_ = conn.SetDeadline(time.Now().Add(n.pool.cfg.DialTimeout))
	raw, err := d.do(resp.AppendCommandStrings(nil, "CLIENT", "ID"), nil, 1)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	v, _, err := resp.Parse(raw)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	d.ID, _ = v.Int()
	return d, nil
}

// Release gives the connection back for the next client. The caller has left
// no state on it.
func (d *Dedicated) Release() {
	n := d.Node
	n.mu.Lock()
	_, known := n.dedicated[d]
	if known && len(n.idle) < maxIdleDedicated && n.pool.ctx.Err() == nil && d.rd.Buffered() == 0 {
		n.idle = append(n.idle, d)
		n.mu.Unlock()
		return
	}
	n.mu.Unlock()
	d.Close()
}

// Close ends the connection; an exchange under way in another goroutine
// returns ErrLost.
func (d *Dedicated) Close() {
	n := d.Node
	n.mu.Lock()
	_, known := n.dedicated[d]
	delete(n.dedicated, d)
	for i, x := range n.idle {
		if x == d {
			n.idle = append(n.idle[:i], n.idle[i+1:]...)
			break
		}
	}
	n.mu.Unlock()
	_ = d.conn.Close()
	if known {
		n.pool.cfg.Closed("dedicated")
	}
}

// open looks, without waiting, whether the server has closed an idle connection.
func (d *Dedicated) open() bool {
	conn := d.conn
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	alive := false
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		alive = errors.Is(err, syscall.EAGAIN)
		return true
	})
	return err == nil && alive
}

// Do sends out, which has the given number of replies, and appends the last
// one to dst. It waits as long as the server takes; wait bounds the time when
// it is not zero. An error wraps ErrNotSent, ErrLost or resp.ErrReplyTooLarge;
// the connection must be closed after the first two.
func (d *Dedicated) Do(out, dst []byte, replies int, wait time.Duration) ([]byte, error) {
	if wait > 0 {
		_ = d.conn.SetReadDeadline(time.Now().Add(wait))
	}
	_ = d.conn.SetWriteDeadline(time.Now().Add(d.Node.pool.cfg.Silence))
	reply, err := d.do(out, dst, replies)
	if wait > 0 && err == nil {
		_ = d.conn.SetReadDeadline(time.Time{})
	}
	return reply, err
}

func (d *Dedicated) do(out, dst []byte, replies int) ([]byte, error) {
	if n, err := d.conn.Write(out); err != nil {
		if n == 0 {
			return dst, fmt.Errorf("%w: %w", ErrNotSent, err)
		}
		return dst, fmt.Errorf("%w: %w", ErrLost, err)
	}
	start := len(dst)
	for range max(1, replies) {
		var err error
		if dst, err = d.rd.Append(dst[:start]); err != nil && !errors.Is(err, resp.ErrReplyTooLarge) {
			return dst, fmt.Errorf("%w: %w", ErrLost, err)
		} else if err != nil {
			return dst, err
		}
	}
	return dst, nil
}

// Confirm waits until the replicas have what was written on the connection, as
// Config.Confirm asks. An error wraps ErrLost.
func (d *Dedicated) Confirm() error {
	cfg := &d.Node.pool.cfg
	if cfg.Confirm == 0 {
		return nil
	}
	raw, err := d.Do(resp.AppendCommandStrings(nil, "WAIT", strconv.Itoa(cfg.Confirm), strconv.FormatInt(cfg.ConfirmWait.Milliseconds(), 10)),
		nil, 1, cfg.ConfirmWait+cfg.Silence)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	v, _, err := resp.Parse(raw)
	if n, ok := v.Int(); err == nil && v.Kind != resp.Error && ok && n >= int64(cfg.Confirm) {
		return nil
	}
	alone := false
	if v.Kind != resp.Error {
		raw, err = d.Do(resp.AppendCommandStrings(nil, "INFO", "replication"), nil, 1, cfg.Silence)
		alone = err == nil && isAlone(raw)
	}
	cfg.Unconfirmed(1, alone)
	if alone {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrLost, errUnconfirmed)
}

// Write sends bytes whose replies Read returns.
func (d *Dedicated) Write(out []byte) error {
	_ = d.conn.SetWriteDeadline(time.Now().Add(d.Node.pool.cfg.Silence))
	if _, err := d.conn.Write(out); err != nil {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	return nil
}

// Read appends the next reply or push to dst; it waits at most wait.
func (d *Dedicated) Read(dst []byte, wait time.Duration) ([]byte, error) {
	_ = d.conn.SetReadDeadline(time.Now().Add(wait))
	return d.rd.Append(dst)
}
