package redisproxy

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"fournines/internal/resp"
	"fournines/redisproxy/upstream"
)

// hub holds one connection for the subscriptions of all clients. Classic
// messages reach every node of a cluster, so any node will do; when it dies,
// another takes over and is told every subscription again. Messages in
// between are lost, as they are for a client that reconnects.
type hub struct {
	p *Proxy

	mu     sync.Mutex
	subs   [2]map[string]*topic // channels, patterns
	conn   *upstream.Dedicated
	wanted chan struct{} // capacity 1: somebody has subscribed
}

// topic is a channel or a pattern.
type topic struct {
	clients map[*session]struct{}
	// active is closed when the node has confirmed the subscription once.
	active chan struct{}
	isOpen bool
}

// subscriptions are a client's own. The session's goroutine writes them.
type subscriptions struct {
	names [2]map[string]struct{}
}

func (x *subscriptions) count() int { return len(x.names[0]) + len(x.names[1]) }

func newHub(p *Proxy) *hub {
	return &hub{p: p, subs: [2]map[string]*topic{{}, {}}, wanted: make(chan struct{}, 1)}
}

func kindOf(pattern bool) int {
	if pattern {
		return 1
	}
	return 0
}

var subscribeNames = [2]string{"SUBSCRIBE", "PSUBSCRIBE"}

const hubPing = 1 * time.Second

// run keeps the connection while there are subscriptions.
func (h *hub) run(ctx context.Context) {
	for ctx.Err() == nil {
		h.mu.Lock()
		need := len(h.subs[0])+len(h.subs[1]) > 0
		h.mu.Unlock()
		if !need {
			select {
			case <-ctx.Done():
				return
			case <-h.wanted:
				continue
			}
		}
		err := h.serve(ctx)
		if ctx.Err() != nil {
			return
		}
		h.p.log.Warn("subscription connection lost", "err", err)
		h.p.cluster.ask()
		select {
		case <-ctx.Done():
		case <-time.After(refreshPause):
		}
	}
}

// serve subscribes to everything at some node and passes messages on until
// the connection breaks.
func (h *hub) serve(ctx context.Context) error {
	m := h.p.cluster.slots.Load()
	if len(m.Masters) == 0 {
		return errors.New("no node is known")
	}
	var conn *upstream.Dedicated
	var err error
	start := int(time.Now().UnixNano() % int64(len(m.Masters)))
	for i := range m.Masters {
		if conn, err = h.p.pool.Node(m.Masters[(start+i)%len(m.Masters)]).Control(ctx); err == nil {
			break
		}
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, conn.Close)
	defer stop()
	h.mu.Lock()
	var out []byte
	for kind, topics := range h.subs {
		for name := range topics {
			out = resp.AppendCommandStrings(out, subscribeNames[kind], name)
		}
	}
	h.conn = conn
	err = conn.Write(out)
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		h.conn = nil
		h.mu.Unlock()
	}()
	if err != nil {
		return err
	}
	// A dead network tells nothing: the connection is asked for signs of life.
	var pinger sync.WaitGroup
	defer pinger.Wait()
	ended := make(chan struct{})
	defer close(ended)
	pinger.Go(func() {
		tick := time.NewTicker(hubPing)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				return
			case <-tick.C:
			}
			h.mu.Lock()
			err := conn.Write([]byte("*1\r\n$4\r\nPING\r\n"))
			h.mu.Unlock()
			if err != nil {
				conn.Close()
				return
			}
		}
	})
	var raw []byte
	for {
		if raw, err = conn.Read(raw[:0], hubPing+h.p.cfg.Timeouts.Silence); err != nil {
			return err
		}
		h.message(raw)
		if cap(raw) > 1<<20 {
			raw = nil
		}
	}
}

// message passes one push of the node on.
func (h *hub) message(raw []byte) {
	v, _, err := resp.Parse(raw)
	if err != nil || len(v.Elems) < 3 {
		return
	}
	name := string(v.Elems[1].Str)
	switch string(v.Elems[0].Str) {
	case "message":
		h.deliver(h.subs[0], name, raw)
	case "pmessage":
		h.deliver(h.subs[1], name, raw)
	case "subscribe":
		h.activate(h.subs[0], name)
	case "psubscribe":
		h.activate(h.subs[1], name)
	}
}

func (h *hub) activate(topics map[string]*topic, name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := topics[name]; t != nil && !t.isOpen {
		t.isOpen = true
		close(t.active)
	}
}

// deliver appends a message to the output of every subscriber. In version 3
// it is a push: only the first byte differs.
func (h *hub) deliver(topics map[string]*topic, name string, raw []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := topics[name]
	if t == nil {
		return
	}
	var push []byte
	for s := range t.clients {
		if s.hubVersion < 3 {
			s.box.append(raw)
			continue
		}
		if push == nil {
			push = bytes.Clone(raw)
			push[0] = resp.Push
		}
		s.box.append(push)
	}
}

// join subscribes a client to one name and queues the confirmation before any
// message. It waits until the node has confirmed, at most for the hold time.
func (h *hub) join(s *session, pattern bool, name string) {
	kind := kindOf(pattern)
	h.mu.Lock()
	t := h.subs[kind][name]
	if t == nil {
		t = &topic{clients: make(map[*session]struct{}), active: make(chan struct{})}
		h.subs[kind][name] = t
		if h.conn != nil {
			_ = h.conn.Write(resp.AppendCommandStrings(nil, subscribeNames[kind], name)) // on failure all is sent again
		}
	}
	// Registered at once, so that the topic is not dropped; messages begin when
	// the client is added to clients.
	waiting := t.active
	h.mu.Unlock()
	select {
	case h.wanted <- struct{}{}:
	default:
	}
	timer := time.NewTimer(h.p.cfg.Timeouts.Hold)
	defer timer.Stop()
	select {
	case <-waiting:
	case <-timer.C: // subscribed as soon as a node is there
	case <-s.ctx.Done():
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if again := h.subs[kind][name]; again != nil {
		t = again
	} else {
		// The last subscriber left while we waited.
		h.subs[kind][name] = t
		if h.conn != nil {
			_ = h.conn.Write(resp.AppendCommandStrings(nil, subscribeNames[kind], name))
		}
	}
	if s.subs.names[kind] == nil {
		s.subs.names[kind] = make(map[string]struct{})
	}
	s.subs.names[kind][name] = struct{}{}
	s.hubVersion = s.version
	s.box.append(s.confirmation(strings.ToLower(subscribeNames[kind]), name, false))
	t.clients[s] = struct{}{}
}

// part ends one subscription of a client.
func (h *hub) part(s *session, pattern bool, name string) {
	kind := kindOf(pattern)
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(s.subs.names[kind], name)
	if t := h.subs[kind][name]; t != nil {
		delete(t.clients, s)
		if len(t.clients) == 0 {
			delete(h.subs[kind], name)
			if h.conn != nil {
				_ = h.conn.Write(resp.AppendCommandStrings(nil, strings.Replace(subscribeNames[kind], "SUB", "UNSUB", 1), name))
			}
		}
	}
}

// leave ends every subscription of a client.
func (h *hub) leave(s *session) {
	for kind := range s.subs.names {
		for name := range s.subs.names[kind] {
			h.part(s, kind == 1, name)
		}
	}
}

// channels counts what is subscribed through this proxy.
func (h *hub) channels(pattern bool) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.subs[kindOf(pattern)])
}

// subscribers counts this proxy's clients of a channel.
func (h *hub) subscribers(name string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := h.subs[0][name]; t != nil {
		return len(t.clients)
	}
	return 0
}

func (s *session) confirmation(what, name string, null bool) []byte {
	out := resp.AppendPush(nil, 3, s.version)
	out = resp.AppendBulkString(out, what)
	if null {
		out = resp.AppendNull(out, s.version)
	} else {
		out = resp.AppendBulkString(out, name)
	}
	return resp.AppendInt(out, int64(s.subs.count()))
}

func isPattern(o *op) bool { return o.info.Name[0] == 'p' }

func (s *session) subscribe(o *op) {
	pattern := isPattern(o)
	names := o.cmd.Args[1:]
	if len(names)+s.subs.count() > s.p.cfg.Limits.MaxKeysPerCommand {
		o.local = resp.AppendError(o.local, "ERR fournines: too many subscriptions (limits.maxKeysPerCommand)")
		return
	}
	for _, n := range names {
		if bytes.HasPrefix(n, []byte("__key")) {
			o.local = resp.AppendError(o.local, refusal(strings.ToLower(string(o.cmd.Args[0]))+" to keyspace notifications", "each node tells only its own, with the names of other databases"))
			return
		}
	}
	if s.box == nil {
		box := newOutbox(s.conn, s.p.cfg.Timeouts.ClientWrite, s.p.cfg.Limits.OutputBufferBytes, func() { s.p.m.cut.WithLabelValues("output_buffer").Inc() })
		s.mu.Lock()
		s.box = box
		s.mu.Unlock()
	}
	for _, n := range names {
		s.p.hub.join(s, pattern, string(n))
	}
}

func (s *session) unsubscribe(o *op) {
	pattern := bytes.EqualFold(o.cmd.Args[0][:1], []byte("p"))
	kind := kindOf(pattern)
	what := strings.ToLower(string(o.cmd.Args[0]))
	var names []string
	for _, a := range o.cmd.Args[1:] {
		names = append(names, string(a))
	}
	if len(o.cmd.Args) == 1 {
		for n := range s.subs.names[kind] {
			names = append(names, n)
		}
		if len(names) == 0 {
			o.local = append(o.local, s.confirmation(what, "", true)...)
			return
		}
	}
	for _, n := range names {
		s.p.hub.part(s, pattern, n)
		o.local = append(o.local, s.confirmation(what, n, false)...)
	}
}

// pubsub is introspection: channels of the whole cluster, counts of this proxy.
func (s *session) pubsub(o *op) {
	args := o.cmd.Args
	switch o.info.Name {
	case "pubsub|channels":
		seen := make(map[string]bool)
		m := s.p.cluster.slots.Load()
		for _, slot := range m.First {
			v, err := s.query(slot, &upstream.Payload{Args: args}, true)
			if s.failed(o, err) {
				return
			}
			for _, e := range v.Elems {
				seen[string(e.Str)] = true
			}
		}
		o.local = resp.AppendArray(o.local, len(seen))
		for name := range seen {
			o.local = resp.AppendBulkString(o.local, name)
		}
	case "pubsub|numsub":
		o.local = resp.AppendMap(o.local, len(args)-2, 2)
		for _, a := range args[2:] {
			o.local = resp.AppendBulk(o.local, a)
			o.local = resp.AppendInt(o.local, int64(s.p.hub.subscribers(string(a))))
		}
	case "pubsub|numpat":
		o.local = resp.AppendInt(o.local, int64(s.p.hub.channels(true)))
	default:
		o.local = resp.AppendError(o.local, unknownSubcommand(args))
	}
}
