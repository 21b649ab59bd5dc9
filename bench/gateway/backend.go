//go:build linux

package main

import (
	"bytes"
	"container/heap"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"time"
)

// backend stands for Dify's instances: one process that answers on several
// addresses, as cheaply as a process can.
type backend struct {
	l        *loop
	answer   []byte
	answerID int
	event    []byte
	eventAt  int
	due      streams
	scratch  []byte
	random   *rand.Rand
}

// stream is an endless answer.
type stream struct {
	c      *conn
	id     uint64
	number uint64
	period time.Duration
	due    time.Time
	index  int
}

var (
	healthAnswer = []byte("HTTP/1.1 200 OK\r\nServer: gunicorn\r\nConnection: keep-alive\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{\"status\":\"ok\"}")
	// otherAnswer is what Dify says to calls such as .../stop.
	otherAnswer = []byte("HTTP/1.1 200 OK\r\nServer: gunicorn\r\nConnection: keep-alive\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{\"result\":\"success\"}")
)

// runBackend serves until standard input ends.
func runBackend(addresses []string) error {
	l, err := newLoop()
	if err != nil {
		return err
	}
	b := &backend{l: l, random: rand.New(rand.NewPCG(1, 2))}
	b.answer, b.answerID = answer()
	b.event, b.eventAt = event()
	l.tick = b.tick
	for _, a := range addresses {
		to, err := netip.ParseAddrPort(a)
		if err != nil {
			return err
		}
		if err := l.listen(to, b); err != nil {
			return err
		}
	}
	if err := l.watch(int(os.Stdin.Fd()), untilEnd{l}); err != nil {
		return err
	}
	fmt.Println("ready")
	return l.run()
}

// untilEnd stops a loop when a pipe ends.
type untilEnd struct{ l *loop }

func (untilEnd) opened(*conn)                           {}
func (untilEnd) data(_ *conn, b []byte) (int, error)    { return len(b), nil }
func (u untilEnd) closed(*conn, error)                  { u.l.stop() }
func (b *backend) opened(*conn)                         {}
func (b *backend) data(c *conn, in []byte) (int, error) { return b.requests(c, in) }
func (b *backend) closed(c *conn, _ error)              { b.forget(c) }

func (b *backend) forget(c *conn) {
	if s, ok := c.state.(*stream); ok && s.index >= 0 {
		heap.Remove(&b.due, s.index)
	}
}

// requests answers the requests in in.
func (b *backend) requests(c *conn, in []byte) (used int, err error) {
	for used < len(in) {
		if c.state != nil {
			return used, errors.New("a request behind one that is being answered")
		}
		h, ok, err := parseHead(in[used:])
		if err != nil || !ok {
			return used, err
		}
		if h.body.left < 0 {
			h.body.left = 0 // a request without a length has no body
		}
		text, size, ok, err := h.body.whole(in[used+h.size:], b.scratch)
		if err != nil || !ok {
			return used, err
		}
		used += h.size + size
		if err := b.reply(c, h.line, text); err != nil {
			return used, err
		}
	}
	return used, nil
}

func (b *backend) reply(c *conn, line, body []byte) error {
	method, rest, _ := bytes.Cut(line, []byte(" "))
	target, _, _ := bytes.Cut(rest, []byte(" "))
	target, query, _ := bytes.Cut(target, []byte("?"))
	switch {
	case string(target) == "/health":
		b.l.send(c, healthAnswer)
		return nil
	case string(target) != path || string(method) != "POST":
		b.l.send(c, otherAnswer)
		return nil
	}
	if len(body) != requestBytes {
		return fmt.Errorf("a request's body has %d bytes", len(body))
	}
	if len(query) == 0 {
		copy(b.answer[b.answerID:], body[requestIDAt:requestIDAt+idBytes])
		b.l.send(c, b.answer)
		return nil
	}
	value, ok := bytes.CutPrefix(query, []byte(rateParameter+"="))
	rate, err := strconv.Atoi(string(value))
	if !ok || err != nil || rate < 0 {
		return fmt.Errorf("query %q", query)
	}
	id, err := getID(body[requestIDAt:])
	if err != nil {
		return err
	}
	s := &stream{c: c, id: id, index: -1}
	c.state = s
	b.l.send(c, []byte(streamHead))
	b.emit(s)
	if rate > 0 && c.fd >= 0 {
		// Each stream has its own phase, wherever it began.
		s.period = time.Second / time.Duration(rate)
		s.due = time.Now().Add(time.Duration(b.random.Int64N(int64(s.period))))
		heap.Push(&b.due, s)
	}
	return nil
}

func (b *backend) emit(s *stream) {
	text := b.event[b.eventAt:]
	putID(text[streamAt:], s.id)
	putID(text[numberAt:], s.number)
	putID(text[timeAt:], uint64(time.Now().UnixNano()))
	s.number++
	b.l.send(s.c, b.event)
}

// tick sends what is due.
func (b *backend) tick(now time.Time) time.Duration {
	for n := 0; len(b.due) > 0; n++ {
		s := b.due[0]
		if wait := s.due.Sub(now); wait > 0 {
			return wait
		}
		if n == 64 {
			return 0 // look at the sockets in between
		}
		b.emit(s)
		if s.index < 0 {
			continue // it broke
		}
		// A backend that is late sends the next one a period later, not two at once.
		if s.due = s.due.Add(s.period); s.due.Before(now) {
			s.due = now.Add(s.period)
		}
		heap.Fix(&b.due, s.index)
	}
	return -1
}

// streams is a heap, the next to be due first.
type streams []*stream

func (s streams) Len() int           { return len(s) }
func (s streams) Less(i, j int) bool { return s[i].due.Before(s[j].due) }
func (s streams) Swap(i, j int) {
	s[i], s[j] = s[j], s[i]
	s[i].index, s[j].index = i, j
}

// Push implements heap.Interface.
func (s *streams) Push(x any) {
	n := x.(*stream)
	n.index = len(*s)
	*s = append(*s, n)
}

// Pop implements heap.Interface.
func (s *streams) Pop() any {
	old := *s
	n := old[len(old)-1]
	n.index = -1
	*s = old[:len(old)-1]
	return n
}
