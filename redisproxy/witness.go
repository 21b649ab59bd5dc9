package redisproxy

import (
	"bytes"
	"strconv"

	"fournines/internal/resp"
	"fournines/redisproxy/upstream"
)

// witness is a question about data whose answer tells that a write of unknown
// result was not executed: what it would have written is not there. Then it may
// run again, as if for the first time. When it is there, nobody knows whether it
// was there before, and so what the reply would have been.
type witness struct {
	payload upstream.Payload
	// written tells whether the answer is what the write leaves.
	written func(v resp.Value) bool
}

// witnessOf returns what to ask about a command; nil when nothing can tell.
// Values are copied: the session's buffer is used again.
func witnessOf(o *op) *witness {
	args := o.cmd.Args
	w := &witness{payload: upstream.Payload{Keys: []int{1}, Prefix: o.db.Prefix}}
	ask := func(name string, member []byte) {
		w.payload.Args = [][]byte{[]byte(name), bytes.Clone(args[1]), bytes.Clone(member)}
	}
	// Of a field or member that is named twice the last one stays.
	last := len(args) - 1
	switch o.info.Name {
	case "hset", "hmset":
		value := bytes.Clone(args[last])
		ask("HGET", args[last-1])
		w.written = func(v resp.Value) bool { return !v.IsNull && bytes.Equal(v.Str, value) }
	case "zadd":
		score, err := strconv.ParseFloat(string(args[last-1]), 64)
		if _, option := strconv.ParseFloat(string(args[2]), 64); err != nil || option != nil {
			return nil // options may forbid the write
		}
		ask("ZSCORE", args[last])
		w.written = func(v resp.Value) bool {
			got, err := strconv.ParseFloat(string(v.Str), 64)
			return err == nil && got == score
		}
	case "sadd":
		ask("SISMEMBER", args[last])
		w.written = func(v resp.Value) bool { return string(v.Str) == "1" }
	default:
		return nil
	}
	return w
}

// absent asks the master of the slot, which may have to be elected first, and tells
// whether the write was surely not executed.
func (s *session) absent(w *witness, slot int) bool {
	v, err := s.query(slot, &w.payload, true)
	return err == nil && v.Kind != resp.Error && !w.written(v)
}

// testimony is collected while a transaction is queued: what will tell whether it
// was executed. One command's data are enough, because all of it was or nothing.
// But every command must leave the same data when it runs twice: before they are
// looked at, others may have changed them.
type testimony struct {
	witness *witness
	useless bool
}

// add takes one command more.
func (t *testimony) add(o *op) {
	if t.useless {
		return
	}
	next := witnessOf(o)
	if next == nil && !repeatable(o) {
		*t = testimony{useless: true}
		return
	}
	if next != nil {
		t.witness = next
		return
	}
	switch o.info.Name {
	case "expire", "pexpire", "expireat", "pexpireat":
		return
	}
	for _, k := range o.keys {
		if t.witness != nil && bytes.Equal(t.witness.payload.Args[1], o.cmd.Args[k]) {
			t.witness = nil // written over, perhaps
		}
	}
}
