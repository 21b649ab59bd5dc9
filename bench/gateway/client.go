//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// The kinds of load.
const (
	kindRequests = "requests" // closed loop over connections that are kept
	kindChurn    = "churn"    // closed loop, each request over a connection of its own
	kindStreams  = "streams"  // so many event streams, each with its own rate
)

// order is what a client process is told on its command line.
type order struct {
	kind        string
	to          netip.AddrPort
	connections int // open at a time: requests in flight, or streams
	rate        int // events a second of each stream
}

// report is what a client process says on standard output, one a line.
type report struct {
	State string `json:"state"` // ready, begun, ended, failed
	Error string `json:"error,omitempty"`
	// Count of good answers or events since it was told to begin.
	Count int64 `json:"count"`
	// Open streams or connections.
	Open int `json:"open"`
	// Bunched events came together with an earlier one of their stream, which
	// happens when somebody on the way was late. They cost less than others.
	Bunched int64 `json:"bunched"`
	// P50, P99 and Max of the time from sending an event to receiving it, in ns.
	P50 int64 `json:"p50"`
	P99 int64 `json:"p99"`
	Max int64 `json:"max"`
}

// client makes load and checks every answer. The first wrong one ends it: a
// proxy that answers wrongly is not fast.
type client struct {
	l       *loop
	order   order
	text    []byte // of a request
	idAt    int
	next    uint64 // id of the next request
	opening int    // connections that have not had an answer
	started int
	good    map[*conn]bool // connections that had a good answer; until ready
	ready   bool
	open    int
	count   int64
	bunched int64
	latency *hdrhistogram.Histogram
	scratch []byte
	source  netip.Addr
	failed  error
}

// call is what a connection of the client is about.
type call struct {
	id      uint64
	sent    bool
	stream  bool
	body    body
	partial []byte // an event that is not whole
	number  uint64 // of the next event
	answers int
}

// maxOpening is how many connections are made at the same time.
const maxOpening = 32

func runClient(o order) error {
	l, err := newLoop()
	if err != nil {
		return err
	}
	rate := -1
	if o.kind == kindStreams {
		rate = o.rate
	}
	c := &client{
		l: l, order: o, good: map[*conn]bool{}, source: netip.AddrFrom4([4]byte{127, 1, 0, 1}),
		latency: hdrhistogram.New(1000, int64(time.Minute), 3),
	}
	c.text, c.idAt = request(o.to.String(), rate)
	l.tick = c.tick
	if err := l.watch(int(os.Stdin.Fd()), &commands{c: c}); err != nil {
		return err
	}
	if err := l.run(); err != nil {
		return err
	}
	return c.failed
}

func say(r report) { _ = json.NewEncoder(os.Stdout).Encode(r) }

func (c *client) fail(err error) {
	if c.failed == nil {
		c.failed = err
		say(report{State: "failed", Error: err.Error()})
	}
	c.l.stop()
}

// commands reads what the runner says: begin, end; and ends with the pipe.
type commands struct{ c *client }

func (*commands) opened(*conn)          {}
func (m *commands) closed(*conn, error) { m.c.l.stop() }
func (m *commands) data(_ *conn, b []byte) (int, error) {
	c := m.c
	used := 0
	for {
		end := bytes.IndexByte(b[used:], '\n')
		if end < 0 {
			return used, nil
		}
		switch word := string(b[used : used+end]); word {
		case "begin":
			c.count, c.bunched = 0, 0
			c.latency.Reset()
			say(report{State: "begun", Open: c.open})
		case "end":
			say(report{
				State: "ended", Count: c.count, Open: c.open, Bunched: c.bunched,
				P50: c.latency.ValueAtQuantile(50), P99: c.latency.ValueAtQuantile(99), Max: c.latency.Max(),
			})
		default:
			return used, fmt.Errorf("unknown command %q", word)
		}
		used += end + 1
	}
}

// tick opens what is not open yet.
func (c *client) tick(time.Time) time.Duration {
	for c.started < c.order.connections && c.opening < maxOpening && c.failed == nil {
		c.started++
		c.dial()
	}
	return -1
}

// dial opens a connection and sends a request over it.
func (c *client) dial() {
	var from netip.Addr
	if c.order.kind == kindChurn {
		// Closed connections keep their ports for a minute, so that one address
		// would soon have none left.
		if c.source = c.source.Next(); c.source.As4()[2] == 1 {
			c.source = netip.AddrFrom4([4]byte{127, 1, 0, 2})
		}
		from = c.source
	}
	c.opening++
	k := &call{stream: c.order.kind == kindStreams}
	if _, err := c.l.dial(c.order.to, from, c, k); err != nil {
		c.fail(err)
	}
}

func (c *client) opened(n *conn) {
	c.open++
	c.ask(n)
}

func (c *client) ask(n *conn) {
	k := n.state.(*call)
	c.next++
	k.id, k.sent = c.next, true
	putID(c.text[c.idAt:], k.id)
	c.l.send(n, c.text)
}

// answered notes the first good answer on a connection.
func (c *client) answered(n *conn) {
	k := n.state.(*call)
	if k.answers++; k.answers == 1 {
		c.opening--
	}
	if c.ready || k.answers > 1 {
		return
	}
	if c.good[n] = true; len(c.good) >= c.order.connections {
		c.ready, c.good = true, nil
		say(report{State: "ready", Open: c.open})
	}
}

func (c *client) data(n *conn, b []byte) (int, error) {
	if n.state.(*call).stream {
		return c.streamData(n, b)
	}
	return c.answerData(n, b)
}

func (c *client) answerData(n *conn, b []byte) (int, error) {
	k := n.state.(*call)
	if !k.sent {
		return 0, fmt.Errorf("%.100q came without a request", b)
	}
	h, ok, err := parseHead(b)
	if err != nil || !ok {
		return 0, err
	}
	if !bytes.HasPrefix(h.line, []byte("HTTP/1.1 200 ")) {
		return 0, fmt.Errorf("status %q: %.300q", h.line, b[h.size:])
	}
	text, size, ok, err := h.body.whole(b[h.size:], c.scratch)
	if err != nil || !ok {
		return 0, err
	}
	if h.body.chunked {
		c.scratch = text
	}
	if err := checkAnswer(text, k.id); err != nil {
		return 0, err
	}
	if used := h.size + size; used != len(b) {
		return 0, fmt.Errorf("%.100q came behind the answer", b[used:])
	}
	c.count++
	k.sent = false
	c.answered(n)
	switch {
	case c.order.kind == kindChurn || h.closes:
		c.l.close(n)
		c.open--
		c.dial()
	default:
		c.ask(n)
	}
	return len(b), nil
}

func (c *client) streamData(n *conn, b []byte) (int, error) {
	k := n.state.(*call)
	now := time.Now().UnixNano()
	used := 0
	if k.sent {
		h, ok, err := parseHead(b)
		if err != nil || !ok {
			return 0, err
		}
		if !bytes.HasPrefix(h.line, []byte("HTTP/1.1 200 ")) || !h.eventStream {
			return 0, fmt.Errorf("a stream begins with %.500q", b)
		}
		k.sent, k.body, used = false, h.body, h.size
		if !h.body.chunked && h.body.left == 0 {
			return used, errors.New("an endless stream ended before it began")
		}
	}
	first := k.number
	for used < len(b) {
		piece, size, done, err := k.body.next(b[used:])
		if err != nil {
			return used, err
		}
		used += size
		if done {
			return used, errors.New("an endless stream ended")
		}
		if err := c.events(n, piece, now); err != nil {
			return used, err
		}
		if size == 0 {
			break
		}
	}
	c.bunched += max(int64(k.number-first)-1, 0)
	return used, nil
}

// events counts the events in a piece of a stream.
func (c *client) events(n *conn, piece []byte, now int64) error {
	k := n.state.(*call)
	if len(k.partial) > 0 {
		piece = append(k.partial, piece...)
	}
	for {
		end := bytes.Index(piece, []byte("\n\n"))
		if end < 0 {
			break
		}
		text := piece[:end+2]
		piece = piece[end+2:]
		if text[0] == ':' {
			continue // a heartbeat
		}
		sent, err := checkEvent(text, k.id, k.number)
		if err != nil {
			return err
		}
		k.number++
		c.count++
		_ = c.latency.RecordValue(max(now-sent, 1))
		if k.number == 1 {
			c.answered(n)
		}
	}
	k.partial = append(k.partial[:0:0], piece...)
	return nil
}

func (c *client) closed(n *conn, err error) {
	k := n.state.(*call)
	c.open--
	if !k.sent && !k.stream && errors.Is(err, io.EOF) {
		// Between two requests a proxy may close; the request goes over a new one.
		c.dial()
		return
	}
	c.fail(fmt.Errorf("request %x over connection %d of %d: %w", k.id, c.started, c.order.connections, err))
}
