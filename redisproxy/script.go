package redisproxy

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // Redis names scripts by their SHA-1
	"encoding/hex"
	"sync"

	"fournines/internal/resp"
	"fournines/redisproxy/upstream"
)

// Bounds of the memory for scripts.
const (
	maxScripts     = 2000
	maxScriptBytes = 32 << 20
)

// scripts remembers the source of scripts, so that EVALSHA works on every
// node and after a failover.
type scripts struct {
	mu    sync.RWMutex
	body  map[string][]byte
	bytes int
}

func newScripts() *scripts { return &scripts{body: make(map[string][]byte)} }

func scriptName(body []byte) string {
	sum := sha1.Sum(body) //nolint:gosec // see import
	return hex.EncodeToString(sum[:])
}

func (sc *scripts) add(body []byte) string {
	name := scriptName(body)
	sc.mu.RLock()
	_, known := sc.body[name]
	sc.mu.RUnlock()
	if known {
		return name
	}
	sc.mu.Lock()
	defer sc.mu.Unlock()
	for old, b := range sc.body { // any one: clients can always send EVAL
		if len(sc.body) < maxScripts && sc.bytes+len(body) <= maxScriptBytes {
			break
		}
		sc.bytes -= len(b)
		delete(sc.body, old)
	}
	sc.body[name] = bytes.Clone(body)
	sc.bytes += len(body)
	return name
}

func (sc *scripts) get(name []byte) ([]byte, bool) {
	sc.mu.RLock()
	defer sc.mu.RUnlock()
	b, ok := sc.body[string(bytes.ToLower(name))]
	return b, ok
}

func (sc *scripts) flush() {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	sc.body, sc.bytes = make(map[string][]byte), 0
}

// note remembers the script of an EVAL.
func (sc *scripts) note(o *op) {
	if o.info.Name == "eval" || o.info.Name == "eval_ro" {
		sc.add(o.cmd.Args[1])
	}
}

// forCall returns the source of the script that an EVALSHA names.
func (sc *scripts) forCall(o *op) ([]byte, bool) {
	if o.info.Name != "evalsha" && o.info.Name != "evalsha_ro" {
		return nil, false
	}
	return sc.get(o.cmd.Args[1])
}

// relayScript is EVAL and EVALSHA. Without keys a script runs at the node of
// the database, in database 0 at any.
func relayScript(s *session, o *op) func(*session, *op) {
	if err := s.locate(o); err != nil {
		msg := err.Error()
		if len(o.cmd.Args) > 2 && bytes.HasPrefix(o.cmd.Args[2], []byte("-")) {
			msg = "ERR Number of keys can't be negative"
		} else if bytes.HasPrefix([]byte(msg), []byte("ERR invalid number of keys")) {
			msg = "ERR Number of keys can't be greater than number of args"
		}
		o.local = resp.AppendError(o.local, msg)
		return nil
	}
	s.p.scripts.note(o)
	s.prepare(o)
	s.send(o)
	return nil
}

// reloadScript turns an EVALSHA that a node did not know into EVAL, which the
// node remembers.
func (s *session) reloadScript(o *op) bool {
	body, ok := s.p.scripts.forCall(o)
	if !ok {
		return false
	}
	args := append([][]byte(nil), o.cmd.Args...)
	args[0] = []byte("EVAL")
	if o.info.Name == "evalsha_ro" {
		args[0] = []byte("EVAL_RO")
	}
	args[1] = body
	o.payload.Args, o.payload.Raw = args, nil
	return true
}

// everywhere asks every master the same and returns the answers; the first
// error reply is returned alone.
func (s *session) everywhere(p *upstream.Payload) ([]resp.Value, *resp.Value, error) {
	m := s.p.cluster.slots.Load()
	var all []resp.Value
	for _, slot := range m.First {
		v, err := s.query(slot, p, true)
		if err != nil {
			return nil, nil, err
		}
		if v.Kind == resp.Error {
			return nil, &v, nil
		}
		all = append(all, v)
	}
	if len(all) == 0 {
		return nil, &resp.Value{Kind: resp.Error, Str: []byte(errHoldExpired)}, nil
	}
	return all, nil, nil
}

// broadcast runs a command at every master and answers with the first answer.
func (s *session) broadcast(o *op) bool {
	all, bad, err := s.everywhere(&upstream.Payload{Args: o.cmd.Args})
	switch {
	case err != nil:
		o.local = resp.AppendError(o.local, errLostSent)
	case bad != nil:
		o.local = resp.AppendValue(o.local, *bad)
	default:
		o.local = resp.AppendValue(o.local, all[0])
		return true
	}
	return false
}

func (s *session) script(o *op) {
	args := o.cmd.Args
	switch o.info.Name {
	case "script|load":
		if s.broadcast(o) {
			s.p.scripts.add(args[2])
		}
	case "script|flush":
		s.p.scripts.flush()
		s.broadcast(o)
	case "script|exists":
		all, bad, err := s.everywhere(&upstream.Payload{Args: args})
		if err != nil || bad != nil {
			o.local = resp.AppendError(o.local, errHoldExpired)
			return
		}
		o.local = resp.AppendArray(o.local, len(args)-2)
		for i, name := range args[2:] {
			_, there := s.p.scripts.get(name)
			if !there {
				there = true
				for _, v := range all {
					there = there && i < len(v.Elems) && string(v.Elems[i].Str) == "1"
				}
			}
			n := int64(0)
			if there {
				n = 1
			}
			o.local = resp.AppendInt(o.local, n)
		}
	default:
		o.local = resp.AppendError(o.local, unknownSubcommand(args))
	}
}

func (s *session) function(o *op) {
	switch o.info.Name {
	case "function|load", "function|delete", "function|flush", "function|restore":
		s.broadcast(o)
	case "function|list", "function|dump":
		s.awaitAnywhere(o)
	default:
		o.local = resp.AppendError(o.local, unknownSubcommand(o.cmd.Args))
	}
}

func (s *session) awaitAnywhere(o *op) {
	o.payload.Args = o.cmd.Args
	o.slot = anySlot
	s.await(o)
}
