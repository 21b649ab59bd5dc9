package redisproxy

import (
	"bytes"

	"fournines/internal/resp"
	"fournines/redisproxy/keyspace"
	"fournines/redisproxy/route"
	"fournines/redisproxy/upstream"
)

// split is a command over several slots, sent as one command for each slot
// and joined. It is not atomic.
type split struct {
	step  int // 2 for MSET: key and value
	parts []*part
	// place[i] is the part and the position in it of the i-th key.
	place [][2]int32
}

type part struct {
	slot    int
	args    [][]byte
	payload upstream.Payload
	req     upstream.Request
	addr    string
}

// splittable are the commands whose answers for single keys can be joined.
var splittable = map[string]bool{"mget": true, "mset": true, "del": true, "unlink": true, "exists": true, "touch": true}

// trySplit sends the parts of a command over several slots. It reports false
// for commands that cannot be split.
func (s *session) trySplit(o *op) bool {
	if !splittable[o.info.Name] {
		return false
	}
	sp := &split{step: 1}
	if o.info.Name == "mset" {
		sp.step = 2
		if len(o.cmd.Args)%2 != 1 {
			o.local = resp.AppendError(o.local, wrongArity("mset"))
			return true
		}
	}
	bySlot := make(map[int]int32)
	sp.place = make([][2]int32, 0, len(o.keys))
	for _, k := range o.keys {
		slot := keyspace.Slot(o.cmd.Args[k])
		i, ok := bySlot[slot]
		if !ok {
			i = int32(len(sp.parts))
			bySlot[slot] = i
			sp.parts = append(sp.parts, &part{slot: slot, args: [][]byte{o.cmd.Args[0]}})
		}
		p := sp.parts[i]
		sp.place = append(sp.place, [2]int32{i, int32((len(p.args) - 1) / sp.step)})
		p.args = append(p.args, o.cmd.Args[k:k+sp.step]...)
	}
	o.split, o.kind = sp, opSplit
	for _, p := range sp.parts {
		p.payload.Args = p.args
		if o.info.Flags&route.ReadOnly == 0 {
			s.writes(&p.payload)
		}
		s.sendRequest(&p.req, &p.payload, p.slot, &p.addr)
	}
	return true
}

func (s *session) completeSplit(o *op) {
	sp := o.split
	repeat := repeatable(o)
	for _, p := range sp.parts {
		x := exchange{req: &p.req, payload: &p.payload, slot: p.slot, addr: p.addr, repeat: repeat}
		if !s.settle(&x, nil) {
			return
		}
	}
	for _, p := range sp.parts {
		if p.req.Reply[0] == resp.Error {
			o.local = append(o.local[:0], p.req.Reply...)
			return
		}
	}
	switch o.info.Name {
	case "mset":
		o.local = append(o.local[:0], "+OK\r\n"...)
	case "mget":
		s.joinValues(o)
	default:
		var sum int64
		for _, p := range sp.parts {
			v, _, err := resp.Parse(p.req.Reply)
			n, ok := v.Int()
			if err != nil || !ok {
				o.local = resp.AppendError(o.local[:0], "ERR fournines: unreadable answer of a node")
				return
			}
			sum += n
		}
		o.local = resp.AppendInt(o.local[:0], sum)
	}
}

// joinValues puts the values of MGET in the order of its keys.
func (s *session) joinValues(o *op) {
	sp := o.split
	values := make([][]resp.Value, len(sp.parts))
	for i, p := range sp.parts {
		v, _, err := resp.Parse(p.req.Reply)
		if err != nil || len(v.Elems) != len(p.args)-1 {
			o.local = resp.AppendError(o.local[:0], "ERR fournines: unreadable answer of a node")
			return
		}
		values[i] = v.Elems
	}
	o.local = resp.AppendArray(o.local[:0], len(sp.place))
	for _, at := range sp.place {
		o.local = resp.AppendValue(o.local, values[at[0]][at[1]])
	}
}

// isNone tells whether a raw reply is a null of either version, or an empty array.
func isNone(raw []byte) bool {
	return bytes.HasPrefix(raw, []byte("$-1")) || bytes.HasPrefix(raw, []byte("*-1")) || bytes.HasPrefix(raw, []byte("_"))
}
