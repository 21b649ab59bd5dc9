package redisproxy

import (
	"context"
	"sync"
	"time"

	"fournines/internal/resp"
	"fournines/redisproxy/upstream"
)

// shardFeed is the connection to one master for the shard channels in its slots.
type shardFeed struct {
	conn *upstream.Dedicated // nil while it connects, or is being given up
}

// runShards looks for nodes for the shard channels that have none: when a client
// subscribes, when slots move, and when a connection was lost.
func (h *hub) runShards(ctx context.Context) {
	var feeds sync.WaitGroup
	defer feeds.Wait()
	for {
		m, changed := h.p.cluster.next()
		h.mu.Lock()
		for name, t := range h.subs[shardChannels] {
			owner := m.Owner(t.slot)
			if h.placeTopic(name, t) || owner == "" || h.feeds[owner] != nil {
				continue // asked, or nobody has the slot, or its node is being connected
			}
			h.feeds[owner] = &shardFeed{}
			feeds.Go(func() { h.serveShard(ctx, owner) })
		}
		h.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-h.place:
		}
		h.mu.Lock()
		refused := h.refused
		h.refused = false
		h.mu.Unlock()
		if refused {
			// Nodes that send each other's clients around are not asked in a loop.
			select {
			case <-ctx.Done():
			case <-time.After(refreshPause):
			}
		}
	}
}

// placeTopic asks the master of a shard channel's slot for it, unless that has
// been done. It reports false while there is no connection to that master. The
// caller holds h.mu.
func (h *hub) placeTopic(name string, t *topic) bool {
	owner := h.p.cluster.slots.Load().Owner(t.slot)
	if owner != "" && t.asked == owner {
		return true
	}
	f := h.feeds[owner]
	if f == nil || f.conn == nil {
		return false
	}
	t.asked = owner
	_ = f.conn.Write(resp.AppendCommandStrings(nil, subscribeNames[shardChannels], name)) // on failure the connection ends, and all is asked again
	return true
}

// forget unsubscribes from a shard channel that nobody wants any more. The caller
// holds h.mu.
func (h *hub) forget(name string, t *topic) {
	h.unsubscribeAt(t.asked, name)
	if t.at != t.asked {
		h.unsubscribeAt(t.at, name)
	}
}

func (h *hub) unsubscribeAt(addr, name string) {
	if f := h.feeds[addr]; f != nil && f.conn != nil {
		_ = f.conn.Write(resp.AppendCommandStrings(nil, unsubscribeNames[shardChannels], name))
	}
}

// serveShard keeps the connection to one master until it breaks or no channel is
// in its slots any more.
func (h *hub) serveShard(ctx context.Context, addr string) {
	conn, err := h.p.pool.Node(addr).Control(ctx)
	if err == nil {
		stop := context.AfterFunc(ctx, conn.Close)
		h.mu.Lock()
		h.feeds[addr].conn = conn
		for name, t := range h.subs[shardChannels] {
			h.placeTopic(name, t)
		}
		h.mu.Unlock()
		err = h.listen(conn, func() bool { return h.feeding(addr) }, func(raw []byte) { h.shardMessage(addr, raw) })
		stop()
		conn.Close()
	}
	h.mu.Lock()
	h.feeds[addr].conn = nil
	lost := false
	for _, t := range h.subs[shardChannels] {
		lost = t.leaves(addr) || lost
	}
	h.mu.Unlock()
	if ctx.Err() == nil && lost {
		h.p.log.Warn("subscription connection lost", "upstream", addr, "err", err)
	}
	h.p.cluster.ask()
	select {
	case <-ctx.Done():
	case <-time.After(refreshPause): // a node that is dead is not dialled in a loop
	}
	h.mu.Lock()
	delete(h.feeds, addr)
	h.mu.Unlock()
	wake(h.place)
}

// feeding tells whether any shard channel is asked of a node, or comes from it.
// The caller holds h.mu.
func (h *hub) feeding(addr string) bool {
	for _, t := range h.subs[shardChannels] {
		if t.at == addr || t.asked == addr {
			return true
		}
	}
	return false
}

// leaves notes that a node does not send the channel's messages any more, and
// tells whether that is news. The caller holds hub.mu.
func (t *topic) leaves(addr string) bool {
	news := t.at == addr || t.asked == addr
	if t.at == addr {
		t.at = ""
	}
	if t.asked == addr {
		t.asked = ""
	}
	return news
}

// shardMessage treats what a master sends.
func (h *hub) shardMessage(addr string, raw []byte) {
	v, _, err := resp.Parse(raw)
	if err != nil {
		return
	}
	if v.Kind == resp.Error {
		h.shardRefused(addr, raw)
		return
	}
	if len(v.Elems) < 3 {
		return // an answer to PING
	}
	name := string(v.Elems[1].Str)
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.subs[shardChannels][name]
	switch string(v.Elems[0].Str) {
	case "smessage":
		// While a channel changes its node, both may send the message.
		if t != nil && t.at == addr {
			deliver(t, raw)
		}
	case "ssubscribe":
		switch {
		case t == nil: // left meanwhile, and told so
		case t.asked != "" && t.asked != addr:
			h.unsubscribeAt(addr, name)
		default:
			if t.at != "" && t.at != addr {
				h.unsubscribeAt(t.at, name)
			}
			t.at, t.asked = addr, addr
			t.activate()
		}
	case "sunsubscribe":
		// Not on our request: the slot has another master.
		if t != nil && t.leaves(addr) {
			h.p.cluster.ask()
			wake(h.place)
		}
	}
}

// shardRefused treats an error, which does not say what it refuses: everything
// that the node has not confirmed is asked again.
func (h *hub) shardRefused(addr string, raw []byte) {
	if what, slot, to := classify(raw, nil); what == moved {
		h.p.cluster.moved(slot, to)
	} else {
		h.p.cluster.ask()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.subs[shardChannels] {
		if t.asked == addr && t.at != addr {
			t.asked = ""
		}
	}
	h.refused = true
	wake(h.place)
}
