package redisproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"sync"
	"time"

	"fournines/internal/resp"
	"fournines/redisproxy/upstream"
)

// blocking runs a command that may wait at the server, on a connection of its
// own. XREAD without BLOCK is an ordinary command.
func blocking(s *session, o *op) func(*session, *op) {
	at, _ := blockArgument(o)
	if at < 0 {
		return s.relay(o)
	}
	if err := s.locate(o); err != nil {
		o.local = resp.AppendError(o.local, err.Error())
		return nil
	}
	return (*session).block
}

// blockArgument returns the place of the timeout and its unit; -1 when the
// command does not wait.
func blockArgument(o *op) (int, time.Duration) {
	args := o.cmd.Args
	switch o.info.Name {
	case "blmpop", "bzmpop":
		return 1, time.Second
	case "xread", "xreadgroup":
		for i := 1; i+1 < len(args); i++ {
			switch {
			case bytes.EqualFold(args[i], []byte("streams")):
				return -1, 0
			case bytes.EqualFold(args[i], []byte("block")):
				return i + 1, time.Millisecond
			case bytes.EqualFold(args[i], []byte("count")):
				i++
			case bytes.EqualFold(args[i], []byte("group")):
				i += 2
			}
		}
		return -1, 0
	}
	return len(args) - 1, time.Second
}

func (s *session) block(o *op) {
	// Watching the client for its end may move the reader's buffer.
	args := make([][]byte, len(o.cmd.Args))
	for i, a := range o.cmd.Args {
		args[i] = bytes.Clone(a)
	}
	o.cmd.Args, o.cmd.Raw = args, nil
	s.prepare(o)
	o.payload.Raw = nil
	at, unit := blockArgument(o)
	var until time.Time
	if f, err := strconv.ParseFloat(string(args[at]), 64); err == nil && f > 0 && f < math.MaxInt32 {
		until = time.Now().Add(time.Duration(f * float64(unit)))
	}
	conn, reply, err := s.onDedicated(o.slot, &o.payload, func() {
		// Tried again: only what is left of the time.
		if until.IsZero() {
			return
		}
		left := max(time.Until(until), time.Millisecond)
		if unit == time.Millisecond {
			args[at] = strconv.AppendInt(nil, left.Milliseconds(), 10)
		} else {
			args[at] = strconv.AppendFloat(nil, left.Seconds(), 'f', 3, 64)
		}
	})
	switch {
	case errors.Is(err, errClientGone):
		s.lost = true
		if reply != nil {
			s.putBack(o, reply)
		}
		return
	case errors.Is(err, errUnknownResult):
		s.p.m.ambiguous.Inc()
		if s.p.cfg.OnLost == "close" {
			s.lost = true
			return
		}
		o.local = resp.AppendError(o.local, errLostSent)
		return
	case err != nil:
		o.local = resp.AppendError(o.local, err.Error())
		return
	}
	conn.Release()
	o.req.Reply = append(o.req.Reply[:0], reply...)
	o.finishReply()
	o.local = append(o.local[:0], o.req.Reply...)
}

var errClientGone = errors.New("the client has gone")

// onDedicated runs one command on a dedicated connection to the master of the
// slot, which the caller gets to release. It tries again, after calling again,
// while the command has not been executed. With again set the command may
// wait at the server: the client is watched, and the hold time runs only
// while no node serves the slot.
func (s *session) onDedicated(slot int, p *upstream.Payload, again func()) (*upstream.Dedicated, []byte, error) {
	deadline := time.Now().Add(s.p.cfg.Timeouts.Hold)
	redirect := ""
	for tries := 0; ; tries++ {
		current, changed := s.p.cluster.next()
		addr := s.target(current, slot, tries)
		p.Asking = false
		if redirect != "" {
			addr, redirect = redirect, ""
			p.Asking = true
		}
		what, text := waitNode, errHoldExpired
		if addr != "" {
			conn, err := s.p.pool.Node(addr).Dedicated(s.ctx, s.version)
			if err != nil {
				what, _, _ = classify(nil, err)
				if what == refused {
					return nil, nil, fmt.Errorf("ERR fournines: %d clients wait at this node already (limits.maxBlocked)", s.p.cfg.Limits.MaxBlocked)
				}
			} else {
				replies := 1
				if p.Asking {
					replies = 2
				}
				var reply []byte
				began := time.Now()
				if again != nil {
					reply, err = s.watched(conn, p.Append(nil), replies)
				} else {
					reply, err = conn.Do(p.Append(nil), nil, replies, 0)
				}
				if errors.Is(err, errClientGone) {
					return nil, reply, err
				}
				var target string
				var at int
				what, at, target = classify(reply, err)
				switch what {
				case done:
					return conn, reply, nil
				case tooLarge:
					conn.Release()
					return nil, nil, errors.New(errDropped)
				case lost:
					conn.Close()
					return nil, nil, errUnknownResult
				case moved:
					s.p.cluster.moved(at, target)
					conn.Release()
				case ask:
					redirect = target
					conn.Release()
				default:
					if err != nil {
						conn.Close()
					} else {
						conn.Release()
						text = string(reply[1 : len(reply)-2])
					}
				}
				if time.Since(began) > refreshPause {
					deadline = time.Now().Add(s.p.cfg.Timeouts.Hold)
				}
			}
		}
		s.p.m.redirects.WithLabelValues(outcomeNames[what]).Inc()
		if what == waitNode || tries > 4 {
			if !s.pause(deadline, changed, refreshPause) {
				return nil, nil, errors.New(text)
			}
		}
		if again != nil {
			again()
		}
	}
}

// watched runs an exchange while it watches the client. When the client goes,
// the server is told to stop waiting; a reply that it gave nevertheless is
// returned with errClientGone, so that what was popped can be put back.
func (s *session) watched(conn *upstream.Dedicated, out []byte, replies int) ([]byte, error) {
	var gone bool
	var wg sync.WaitGroup
	finished := make(chan struct{})
	wg.Go(func() {
		for s.rd.Buffered() < keepReply {
			if err := s.rd.Fill(); err != nil {
				select {
				case <-finished:
				default:
					gone = true
					s.unblock(conn)
				}
				return
			}
		}
	})
	reply, err := conn.Do(out, nil, replies, 0)
	close(finished)
	_ = s.conn.SetReadDeadline(time.Unix(1, 0))
	wg.Wait()
	_ = s.conn.SetReadDeadline(time.Time{})
	if !gone {
		return reply, err
	}
	if err != nil {
		conn.Close()
		return nil, errClientGone
	}
	conn.Release()
	return reply, errClientGone
}

// unblock ends a blocked command; the connection is closed when the server
// does not react.
func (s *session) unblock(conn *upstream.Dedicated) {
	w := upstream.NewWaiter()
	w.Budget.Store(1 << 20)
	var r upstream.Request
	w.Begin()
	conn.Node.Send(2, s.pick, w, &r, words("CLIENT", "UNBLOCK", strconv.FormatInt(conn.ID, 10)))
	conn.Node.Kick(2, s.pick)
	w.Wait()
	if r.Err != nil || len(r.Reply) == 0 || r.Reply[0] == resp.Error {
		conn.Close()
	}
}

// putBack returns to its place what was popped for a client that has gone.
func (s *session) putBack(o *op, raw []byte) {
	if len(raw) == 0 || raw[0] == resp.Error || isNone(raw) {
		return
	}
	v, _, err := resp.Parse(raw)
	if err != nil || len(v.Elems) < 2 {
		return
	}
	key := v.Elems[0].Str // as stored
	var args [][]byte
	elems := v.Elems[1:]
	switch o.info.Name {
	case "blpop", "brpop":
		push := "LPUSH"
		if o.info.Name == "brpop" {
			push = "RPUSH"
		}
		args = [][]byte{[]byte(push), key, elems[0].Str}
	case "blmpop":
		push := "LPUSH"
		for _, a := range o.cmd.Args {
			if bytes.EqualFold(a, []byte("right")) {
				push = "RPUSH"
			}
		}
		args = [][]byte{[]byte(push), key}
		for i := len(elems[0].Elems) - 1; i >= 0; i-- {
			args = append(args, elems[0].Elems[i].Str)
		}
	case "bzpopmin", "bzpopmax":
		if len(elems) < 2 {
			return
		}
		args = [][]byte{[]byte("ZADD"), key, elems[1].Str, elems[0].Str}
	case "bzmpop":
		args = [][]byte{[]byte("ZADD"), key}
		for _, pair := range elems[0].Elems {
			if len(pair.Elems) == 2 {
				args = append(args, pair.Elems[1].Str, pair.Elems[0].Str)
			}
		}
	default: // the others move inside the server, or keep what they gave as pending
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), s.p.cfg.Timeouts.Hold)
	defer cancel()
	if ctx.Err() != nil {
		return
	}
	if v, err := s.query(o.slot, &upstream.Payload{Args: args}, false); err == nil && v.Kind != resp.Error {
		s.p.m.putBack.Inc()
	} else {
		s.p.log.Error("an element popped for a client that had gone could not be put back", "conn", s.id, "err", err)
	}
	s.lost = true
}
