package redisproxy

import (
	"bytes"
	"strings"

	"fournines/internal/resp"
	"fournines/redisproxy/upstream"
)

// confirmation answers a subscription or its end; without a name it is the answer
// to the end of none.
func (s *session) confirmation(kind int, what, name string) []byte {
	out := resp.AppendPush(nil, 3, s.version)
	out = resp.AppendBulkString(out, strings.ToLower(what))
	out = resp.AppendBulkString(out, name)
	return s.appendCount(out, kind)
}

// appendCount appends how many subscriptions are left: of channels and patterns
// together, or of shard channels.
func (s *session) appendCount(out []byte, kind int) []byte {
	n := s.subs.classic()
	if kind == shardChannels {
		n = len(s.subs.names[shardChannels])
	}
	return resp.AppendInt(out, int64(n))
}

// kindOf is the kind of subscriptions that a command is about.
func kindOf(o *op) int {
	switch o.info.Name {
	case "psubscribe", "punsubscribe":
		return patterns
	case "ssubscribe", "sunsubscribe":
		return shardChannels
	}
	return channels
}

func (s *session) subscribe(o *op) {
	kind := kindOf(o)
	names := o.cmd.Args[1:]
	if len(names)+s.subs.count() > s.p.cfg.Limits.MaxKeysPerCommand {
		o.local = resp.AppendError(o.local, "ERR fournines: too many subscriptions (limits.maxKeysPerCommand)")
		return
	}
	for _, n := range names {
		if kind != shardChannels && bytes.HasPrefix(n, []byte("__key")) {
			o.local = resp.AppendError(o.local, refusal(o.info.Name+" to keyspace notifications", "each node tells only its own, with the names of other databases"))
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
		s.p.hub.join(s, kind, string(n))
	}
}

func (s *session) unsubscribe(o *op) {
	kind := kindOf(o)
	var names []string
	for _, a := range o.cmd.Args[1:] {
		names = append(names, string(a))
	}
	if len(o.cmd.Args) == 1 {
		for n := range s.subs.names[kind] {
			names = append(names, n)
		}
		if len(names) == 0 {
			o.local = resp.AppendPush(o.local, 3, s.version)
			o.local = resp.AppendBulkString(o.local, o.info.Name)
			o.local = s.appendCount(resp.AppendNull(o.local, s.version), kind)
			return
		}
	}
	for _, n := range names {
		s.p.hub.part(s, kind, n)
		o.local = append(o.local, s.confirmation(kind, o.info.Name, n)...)
	}
}

// shardPublish sends SPUBLISH to the master of the channel's slot.
func shardPublish(s *session, o *op) func(*session, *op) {
	o.payload.Args, o.payload.Raw = o.cmd.Args, o.cmd.Raw
	_ = s.locate(o) // a channel always has a slot
	s.send(o)
	return nil
}

// pubsub is introspection: channels of the whole cluster, counts of this proxy.
func (s *session) pubsub(o *op) {
	args := o.cmd.Args
	switch o.info.Name {
	case "pubsub|channels", "pubsub|shardchannels":
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
	case "pubsub|numsub", "pubsub|shardnumsub":
		kind := channels
		if o.info.Name == "pubsub|shardnumsub" {
			kind = shardChannels
		}
		o.local = resp.AppendMap(o.local, len(args)-2, 2)
		for _, a := range args[2:] {
			o.local = resp.AppendBulk(o.local, a)
			o.local = resp.AppendInt(o.local, int64(s.p.hub.subscribers(kind, string(a))))
		}
	case "pubsub|numpat":
		o.local = resp.AppendInt(o.local, int64(s.p.hub.topics(patterns)))
	default:
		o.local = resp.AppendError(o.local, unknownSubcommand(args))
	}
}
