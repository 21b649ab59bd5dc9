package redisproxy

import (
	"bytes"
	"errors"
	"hash/fnv"
	"math/rand/v2"
	"strconv"
	"strings"

	"fournines/internal/resp"
	"fournines/redisproxy/keyspace"
	"fournines/redisproxy/upstream"
)

// maxListed is how many keys of a slot are listed to count them exactly.
const maxListed = 100000

func words(args ...string) *upstream.Payload {
	return &upstream.Payload{Raw: resp.AppendCommandStrings(nil, args...)}
}

// nodeError is an error reply of a node, to be passed on.
type nodeError string

func (e nodeError) Error() string { return string(e) }

func (s *session) number(slot int, args ...string) (int64, error) {
	v, err := s.query(slot, words(args...), true)
	if err != nil {
		return 0, err
	}
	if v.Kind == resp.Error {
		return 0, nodeError(v.Str)
	}
	n, _ := v.Int()
	return n, nil
}

// slotKeys lists the stored keys of the slot of a database other than 0 that
// belong to it, as the client names them.
func (s *session) slotKeys(db *keyspace.DB, limit int) ([][]byte, error) {
	v, err := s.query(db.Slot, words("CLUSTER", "GETKEYSINSLOT", strconv.Itoa(db.Slot), strconv.Itoa(limit)), true)
	if err != nil {
		return nil, err
	}
	if v.Kind == resp.Error {
		return nil, nodeError(v.Str)
	}
	keys := make([][]byte, 0, len(v.Elems))
	for _, e := range v.Elems {
		if key, ok := db.Strip(e.Str); ok {
			keys = append(keys, key)
		}
	}
	return keys, nil
}

// size counts the keys of a database: exactly, except that above maxListed
// the keys of database 0 that share the slot (one in 16384) are counted too.
func (s *session) size(db *keyspace.DB) (int64, error) {
	if !db.Sharded() {
		n, err := s.number(db.Slot, "CLUSTER", "COUNTKEYSINSLOT", strconv.Itoa(db.Slot))
		if err != nil || n == 0 || n > maxListed {
			return n, err
		}
		keys, err := s.slotKeys(db, int(n)+1000)
		return int64(len(keys)), err
	}
	var sum int64
	for _, slot := range s.p.cluster.slots.Load().First {
		n, err := s.number(slot, "DBSIZE")
		if err != nil {
			return 0, err
		}
		sum += n
	}
	for i := 1; i < keyspace.Databases; i++ {
		n, err := s.size(&s.p.dbs[i])
		if err != nil {
			return 0, err
		}
		sum -= n
	}
	return max(0, sum), nil
}

// failed answers with what went wrong; true means that there is nothing else
// to answer.
func (s *session) failed(o *op, err error) bool {
	var ne nodeError
	switch {
	case err == nil:
		return false
	case errors.As(err, &ne):
		o.local = resp.AppendError(o.local[:0], string(ne))
	case errors.Is(err, errUnknownResult):
	default:
		o.local = resp.AppendError(o.local[:0], "ERR fournines: unreadable answer of a node")
	}
	return true
}

func (s *session) dbsize(o *op) {
	n, err := s.size(o.db)
	if !s.failed(o, err) {
		o.local = resp.AppendInt(o.local, n)
	}
}

func (s *session) keys(o *op) {
	pattern := o.cmd.Args[1]
	var found [][]byte
	if !o.db.Sharded() {
		all, err := s.slotKeys(o.db, 1<<31-1)
		if s.failed(o, err) {
			return
		}
		for _, k := range all {
			if keyspace.Match(pattern, k) {
				found = append(found, k)
			}
		}
	} else {
		for _, slot := range s.p.cluster.slots.Load().First {
			v, err := s.query(slot, &upstream.Payload{Args: o.cmd.Args}, true)
			if err == nil && v.Kind == resp.Error {
				err = nodeError(v.Str)
			}
			if s.failed(o, err) {
				return
			}
			for _, e := range v.Elems {
				if !keyspace.Reserved(e.Str) {
					found = append(found, e.Str)
				}
			}
		}
	}
	o.local = resp.AppendArray(o.local, len(found))
	for _, k := range found {
		o.local = resp.AppendBulk(o.local, k)
	}
}

// tag identifies the process behind addr in a cursor.
func (s *session) tag(addr string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(s.p.pool.Node(addr).RunID()))
	return h.Sum32()
}

// scan walks one master after the other. The cursor names the process that
// issued it: after a failover that shard starts over, so that nothing is
// missed; SCAN may return a key twice.
func (s *session) scan(o *op) {
	args := o.cmd.Args
	n, err := strconv.ParseUint(string(args[1]), 10, 64)
	if err != nil {
		o.local = resp.AppendError(o.local, "ERR invalid cursor")
		return
	}
	cur := keyspace.DecodeCursor(n)
	m := s.p.cluster.slots.Load()
	slot := o.db.Slot
	if o.db.Sharded() {
		if cur.Shard >= len(m.First) {
			o.local = resp.AppendArray(o.local, 2)
			o.local = resp.AppendBulkString(o.local, "0")
			o.local = resp.AppendArray(o.local, 0)
			return
		}
		slot = m.First[cur.Shard]
	}
	addr := m.Owner(slot)
	if addr == "" || cur.Node != 0 && !cur.SameTag(s.tag(addr)) {
		cur.Node = 0
	}
	out := [][]byte{[]byte("SCAN"), []byte(strconv.FormatUint(cur.Node, 10))}
	matched := false
	for i := 2; i < len(args); i++ {
		if bytes.EqualFold(args[i], []byte("match")) && i+1 < len(args) && len(o.db.Prefix) > 0 {
			pattern := keyspace.EscapePattern(nil, o.db.Prefix)
			out = append(out, args[i], append(pattern, args[i+1]...))
			matched = true
			i++
			continue
		}
		out = append(out, args[i])
	}
	if !matched && len(o.db.Prefix) > 0 {
		out = append(out, []byte("MATCH"), append(keyspace.EscapePattern(nil, o.db.Prefix), '*'))
	}
	v, err := s.queryAt(addr, slot, &upstream.Payload{Args: out}, true)
	if err == nil && v.Kind == resp.Error {
		err = nodeError(v.Str)
	}
	if s.failed(o, err) {
		return
	}
	if len(v.Elems) != 2 {
		s.failed(o, errors.New("scan"))
		return
	}
	now := s.p.cluster.slots.Load().Owner(slot)
	next := keyspace.Cursor{Shard: cur.Shard, Tag: s.tag(now)}
	next.Node, err = strconv.ParseUint(string(v.Elems[0].Str), 10, 64)
	if s.failed(o, err) {
		return
	}
	if now != addr {
		// The answer may come from another process than the cursor was for.
		next.Tag, next.Node = s.tag(now)+1, 1
	}
	if next.Node == 0 && o.db.Sharded() {
		next = keyspace.Cursor{Shard: cur.Shard + 1}
	}
	if next.Node == 0 && (!o.db.Sharded() || next.Shard >= len(m.First)) {
		next = keyspace.Cursor{}
	}
	packed, ok := next.Encode()
	if !ok {
		o.local = resp.AppendError(o.local, "ERR fournines: the node's cursor does not fit; use KEYS or a smaller database")
		return
	}
	var found [][]byte
	for _, e := range v.Elems[1].Elems {
		if key, ok := o.db.Strip(e.Str); ok {
			found = append(found, key)
		}
	}
	o.local = resp.AppendArray(o.local, 2)
	o.local = resp.AppendBulkString(o.local, strconv.FormatUint(packed, 10))
	o.local = resp.AppendArray(o.local, len(found))
	for _, k := range found {
		o.local = resp.AppendBulk(o.local, k)
	}
}

func (s *session) randomKey(o *op) {
	if !o.db.Sharded() {
		keys, err := s.slotKeys(o.db, 1000)
		if s.failed(o, err) {
			return
		}
		if len(keys) == 0 {
			o.local = resp.AppendNull(o.local, s.version)
			return
		}
		o.local = resp.AppendBulk(o.local, keys[rand.IntN(len(keys))])
		return
	}
	// A few draws, then whatever a full look finds.
	first := s.p.cluster.slots.Load().First
	for _, i := range rand.Perm(len(first)) {
		for range 16 {
			v, err := s.query(first[i], words("RANDOMKEY"), true)
			if s.failed(o, err) {
				return
			}
			if v.IsNull {
				break
			}
			if v.Kind == resp.Bulk && !keyspace.Reserved(v.Str) {
				o.local = resp.AppendBulk(o.local, v.Str)
				return
			}
		}
	}
	for _, slot := range first {
		var found []byte
		err := s.eachKey(slot, func(keys [][]byte) error {
			found = keys[0]
			return errStop
		})
		if found != nil {
			o.local = resp.AppendBulk(o.local, found)
			return
		}
		if s.failed(o, err) {
			return
		}
	}
	o.local = resp.AppendNull(o.local, s.version)
}

var errStop = errors.New("stop")

// eachKey calls f with the keys of database 0 at the master of slot, some at
// a time.
func (s *session) eachKey(slot int, f func(keys [][]byte) error) error {
	cursor := "0"
	for {
		v, err := s.query(slot, words("SCAN", cursor, "COUNT", "1000"), true)
		if err != nil {
			return err
		}
		if v.Kind == resp.Error || len(v.Elems) != 2 {
			return nodeError(v.Str)
		}
		var keys [][]byte
		for _, e := range v.Elems[1].Elems {
			if !keyspace.Reserved(e.Str) {
				keys = append(keys, e.Str)
			}
		}
		if len(keys) > 0 {
			if err := f(keys); err != nil {
				return err
			}
		}
		if cursor = string(v.Elems[0].Str); cursor == "0" {
			return nil
		}
	}
}

// flushDB deletes the keys of one database and nothing else. It is not atomic.
func (s *session) flushDB(o *op) {
	if s.failed(o, s.flush1(o.db)) {
		return
	}
	o.local = append(o.local, "+OK\r\n"...)
}

func (s *session) flush1(db *keyspace.DB) error {
	if !db.Sharded() {
		for {
			keys, err := s.slotKeys(db, maxListed)
			if err != nil || len(keys) == 0 {
				return err
			}
			for chunk := range chunks(keys, 1000) {
				p := upstream.Payload{Args: [][]byte{[]byte("UNLINK")}, Prefix: db.Prefix}
				for i, k := range chunk {
					p.Args = append(p.Args, k)
					p.Keys = append(p.Keys, i+1)
				}
				if _, err := s.query(db.Slot, &p, true); err != nil {
					return err
				}
			}
		}
	}
	for _, slot := range s.p.cluster.slots.Load().First {
		if err := s.eachKey(slot, s.unlinkEach); err != nil {
			return err
		}
	}
	return nil
}

// unlinkEach deletes keys of database 0, which are in many slots, with one
// request each and one wait for all.
func (s *session) unlinkEach(keys [][]byte) error {
	parts := make([]part, len(keys))
	s.w.Begin()
	for i, k := range keys {
		p := &parts[i]
		p.slot, p.payload.Args = keyspace.Slot(k), [][]byte{[]byte("UNLINK"), k}
		s.sendRequest(&p.req, &p.payload, p.slot, &p.addr)
	}
	s.kick()
	s.w.Wait()
	for i := range parts {
		p := &parts[i]
		x := exchange{req: &p.req, payload: &p.payload, slot: p.slot, addr: p.addr, repeat: true}
		if !s.settle(&x, nil) {
			return errUnknownResult
		}
		if p.req.Reply[0] == resp.Error {
			return nodeError(p.req.Reply[1 : len(p.req.Reply)-2])
		}
	}
	return nil
}

func chunks(keys [][]byte, n int) func(func([][]byte) bool) {
	return func(yield func([][]byte) bool) {
		for len(keys) > 0 {
			k := min(n, len(keys))
			if !yield(keys[:k]) {
				return
			}
			keys = keys[k:]
		}
	}
}

func (s *session) flushAll(o *op) {
	if len(o.cmd.Args) > 2 || len(o.cmd.Args) == 2 && !strings.EqualFold(string(o.cmd.Args[1]), "async") && !strings.EqualFold(string(o.cmd.Args[1]), "sync") {
		o.local = resp.AppendError(o.local, "ERR syntax error")
		return
	}
	s.broadcast(o)
}
