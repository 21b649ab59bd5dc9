package redisproxy

import (
	"bytes"

	"fournines/internal/resp"
	"fournines/redisproxy/keyspace"
)

// rewriter changes a raw reply, which is not an error, so that it names keys
// as the client does.
type rewriter func(o *op, raw []byte) []byte

// rewriterFor returns what the command's reply needs in the operation's
// database; nil when it can be relayed as it is.
func rewriterFor(o *op) rewriter {
	if o.db.Sharded() {
		return nil
	}
	switch o.info.Name {
	case "blpop", "brpop", "bzpopmin", "bzpopmax", "lmpop", "blmpop", "zmpop", "bzmpop":
		return firstElement
	case "xread", "xreadgroup":
		return streams
	case "eval", "evalsha", "eval_ro", "evalsha_ro", "fcall", "fcall_ro":
		return everyKey
	}
	return nil
}

// everyKey is for replies of scripts, which may name their keys anywhere.
func everyKey(o *op, raw []byte) []byte {
	if !bytes.Contains(raw, o.db.Prefix) {
		return raw
	}
	v, _, err := resp.Parse(raw)
	if err != nil {
		return raw
	}
	stripAll(o.db, &v)
	return resp.AppendValue(nil, v)
}

func stripAll(db *keyspace.DB, v *resp.Value) {
	if key, ok := db.Strip(v.Str); ok {
		v.Str = key
	}
	for i := range v.Elems {
		stripAll(db, &v.Elems[i])
	}
}

// firstElement is for replies whose first element is a key.
func firstElement(o *op, raw []byte) []byte {
	v, _, err := resp.Parse(raw)
	if err != nil || v.IsNull || len(v.Elems) == 0 {
		return raw
	}
	v.Elems[0].Str, _ = o.db.Strip(v.Elems[0].Str)
	return resp.AppendValue(nil, v)
}

// streams is for [[key, entries] …], in version 3 {key: entries …}.
func streams(o *op, raw []byte) []byte {
	v, _, err := resp.Parse(raw)
	if err != nil || v.IsNull {
		return raw
	}
	if v.Kind == resp.Map {
		for i := 0; i < len(v.Elems); i += 2 {
			v.Elems[i].Str, _ = o.db.Strip(v.Elems[i].Str)
		}
	} else {
		for _, e := range v.Elems {
			if len(e.Elems) > 0 {
				e.Elems[0].Str, _ = o.db.Strip(e.Elems[0].Str)
			}
		}
	}
	return resp.AppendValue(nil, v)
}
