package redisproxy

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"time"

	"fournines/internal/resp"
	"fournines/redisproxy/keyspace"
	"fournines/redisproxy/upstream"
)

// The kinds of subscriptions.
const (
	channels = iota
	patterns
	shardChannels
	subscriptionKinds
)

var (
	subscribeNames   = [subscriptionKinds]string{"SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE"}
	unsubscribeNames = [subscriptionKinds]string{"UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE"}
)

// hub holds the subscriptions of all clients. Classic messages reach every node
// of a cluster, so one connection to any node carries all channels and patterns;
// when it dies, another takes over and is told every subscription again. Sharded
// messages stay with the master of their channel's slot and its replicas, so
// there is a connection to each master that has some (see hubshards.go). Messages
// in between are lost, as they are for a client that reconnects.
type hub struct {
	p *Proxy

	mu     sync.Mutex
	subs   [subscriptionKinds]map[string]*topic
	conn   *upstream.Dedicated   // for channels and patterns
	feeds  map[string]*shardFeed // for shard channels, by address
	wanted chan struct{}         // capacity 1: somebody has subscribed
	place  chan struct{}         // capacity 1: a shard channel has no node
	// refused is set when a node has refused a shard channel.
	refused bool
}

// topic is a channel, a pattern or a shard channel.
type topic struct {
	clients map[*session]struct{}
	// active is closed when a node has confirmed the subscription once.
	active chan struct{}
	isOpen bool

	// Of a shard channel: its slot, the node whose messages count, and the one
	// that was asked last, which is the same once it has confirmed.
	slot      int
	at, asked string
}

// subscriptions are a client's own. The session's goroutine writes them.
type subscriptions struct {
	names [subscriptionKinds]map[string]struct{}
}

// count is how many there are of all kinds.
func (x *subscriptions) count() int { return x.classic() + len(x.names[shardChannels]) }

// classic is how many channels and patterns there are.
func (x *subscriptions) classic() int { return len(x.names[channels]) + len(x.names[patterns]) }

func newHub(p *Proxy) *hub {
	h := &hub{p: p, feeds: make(map[string]*shardFeed), wanted: make(chan struct{}, 1), place: make(chan struct{}, 1)}
	for kind := range h.subs {
		h.subs[kind] = make(map[string]*topic)
	}
	return h
}

func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

const hubPing = 1 * time.Second

// run keeps the connections while there are subscriptions.
func (h *hub) run(ctx context.Context) {
	var shards sync.WaitGroup
	defer shards.Wait()
	shards.Go(func() { h.runShards(ctx) })
	for ctx.Err() == nil {
		h.mu.Lock()
		need := len(h.subs[channels])+len(h.subs[patterns]) > 0
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

// serve subscribes to all channels and patterns at some node and passes messages
// on until the connection breaks.
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
	for kind, topics := range h.subs[:shardChannels] {
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
	return h.listen(conn, func() bool { return true }, h.message)
}

// listen passes what a node sends to handle until the connection breaks. A dead
// network tells nothing: the connection is asked for signs of life, and closed
// when needed, which is called with h.mu held, says that nobody wants it.
func (h *hub) listen(conn *upstream.Dedicated, needed func() bool, handle func(raw []byte)) error {
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
			var err error
			keep := needed()
			if keep {
				err = conn.Write([]byte("*1\r\n$4\r\nPING\r\n"))
			}
			h.mu.Unlock()
			if !keep || err != nil {
				conn.Close()
				return
			}
		}
	})
	var raw []byte
	for {
		var err error
		if raw, err = conn.Read(raw[:0], hubPing+h.p.cfg.Timeouts.Silence); err != nil {
			return err
		}
		handle(raw)
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
	name := v.Elems[1].Str
	h.mu.Lock()
	defer h.mu.Unlock()
	switch string(v.Elems[0].Str) {
	case "message":
		deliver(h.subs[channels][string(name)], raw)
	case "pmessage":
		deliver(h.subs[patterns][string(name)], raw)
	case "subscribe":
		h.subs[channels][string(name)].activate()
	case "psubscribe":
		h.subs[patterns][string(name)].activate()
	}
}

// activate notes that the node has confirmed. The caller holds hub.mu.
func (t *topic) activate() {
	if t != nil && !t.isOpen {
		t.isOpen = true
		close(t.active)
	}
}

// deliver appends a message to the output of every subscriber. In version 3
// it is a push: only the first byte differs. The caller holds hub.mu.
func deliver(t *topic, raw []byte) {
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

// tell asks a node for a subscription; when there is no connection now, the next
// one asks. The caller holds h.mu.
func (h *hub) tell(kind int, name string, t *topic) {
	switch {
	case kind == shardChannels:
		if !h.placeTopic(name, t) {
			wake(h.place)
		}
	case h.conn != nil:
		_ = h.conn.Write(resp.AppendCommandStrings(nil, subscribeNames[kind], name)) // on failure all is sent again
	}
}

// join subscribes a client to one name and queues the confirmation before any
// message. It waits until the node has confirmed, at most for the hold time.
func (h *hub) join(s *session, kind int, name string) {
	h.mu.Lock()
	t := h.subs[kind][name]
	if t == nil {
		t = &topic{clients: make(map[*session]struct{}), active: make(chan struct{})}
		if kind == shardChannels {
			t.slot = keyspace.Slot([]byte(name))
		}
		h.subs[kind][name] = t
		h.tell(kind, name, t)
	}
	// Registered at once, so that the topic is not dropped; messages begin when
	// the client is added to clients.
	waiting := t.active
	h.mu.Unlock()
	wake(h.wanted)
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
		h.tell(kind, name, t)
	}
	if s.subs.names[kind] == nil {
		s.subs.names[kind] = make(map[string]struct{})
	}
	s.subs.names[kind][name] = struct{}{}
	s.hubVersion = s.version
	s.box.append(s.confirmation(kind, subscribeNames[kind], name))
	t.clients[s] = struct{}{}
}

// part ends one subscription of a client.
func (h *hub) part(s *session, kind int, name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(s.subs.names[kind], name)
	t := h.subs[kind][name]
	if t == nil {
		return
	}
	delete(t.clients, s)
	if len(t.clients) > 0 {
		return
	}
	delete(h.subs[kind], name)
	switch {
	case kind == shardChannels:
		h.forget(name, t)
	case h.conn != nil:
		_ = h.conn.Write(resp.AppendCommandStrings(nil, unsubscribeNames[kind], name))
	}
}

// leave ends every subscription of a client.
func (h *hub) leave(s *session) {
	for kind := range s.subs.names {
		for name := range s.subs.names[kind] {
			h.part(s, kind, name)
		}
	}
}

// topics counts what is subscribed through this proxy.
func (h *hub) topics(kind int) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.subs[kind])
}

// subscribers counts this proxy's clients of a channel.
func (h *hub) subscribers(kind int, name string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := h.subs[kind][name]; t != nil {
		return len(t.clients)
	}
	return 0
}
