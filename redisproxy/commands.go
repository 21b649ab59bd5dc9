package redisproxy

import (
	"bytes"
	"errors"
	"strconv"
	"strings"
	"time"

	"fournines/internal/resp"
	"fournines/redisproxy/keyspace"
	"fournines/redisproxy/route"
	"fournines/redisproxy/upstream"
)

// handler treats a command that is not simply relayed by its keys.
type handler struct {
	family int
	// run answers at once, or with a request on its way; the function it
	// returns, when not nil, is run after all earlier commands of the client
	// have been answered.
	run func(s *session, o *op) func(*session, *op)
	// stranger allows it before authentication, inSub while subscribed with
	// protocol version 2, inMulti in a transaction (where it is queued).
	stranger, inSub, inMulti bool
}

// alone makes a handler of a function that needs the session for itself.
func alone(family int, f func(*session, *op)) handler {
	return handler{family: family, run: func(*session, *op) func(*session, *op) { return f }}
}

// local makes a handler of a function that answers at once.
func local(family int, f func(*session, *op)) handler {
	return handler{family: family, run: func(s *session, o *op) func(*session, *op) { f(s, o); return nil }}
}

func (h handler) forStrangers() handler { h.stranger = true; return h }
func (h handler) subscribed() handler   { h.inSub = true; return h }
func (h handler) queueable() handler    { h.inMulti = true; return h }

// handlers holds every command with a treatment of its own. It is built once
// and never changed.
var handlers = map[string]handler{
	"auth":    local(famConnection, (*session).auth).forStrangers(),
	"hello":   local(famConnection, (*session).hello).forStrangers(),
	"quit":    local(famConnection, (*session).quit).forStrangers().subscribed(),
	"reset":   alone(famConnection, (*session).resetAll).forStrangers().subscribed(),
	"ping":    local(famConnection, (*session).ping).subscribed().queueable(),
	"echo":    local(famConnection, (*session).echo).queueable(),
	"select":  local(famConnection, (*session).selectDB),
	"client":  alone(famConnection, (*session).client),
	"command": {family: famConnection, run: relayAnywhere},
	"time":    local(famConnection, (*session).time).queueable(),
	"lolwut":  {family: famConnection, run: relayAnywhere, inMulti: true},
	"info":    alone(famConnection, (*session).info),
	"config":  alone(famConnection, (*session).config),
	"acl":     local(famConnection, (*session).acl),
	"role":    local(famConnection, (*session).role),

	"multi":   {family: famTransaction},
	"exec":    {family: famTransaction},
	"discard": {family: famTransaction},
	"watch":   alone(famTransaction, (*session).watchKeys),
	"unwatch": alone(famTransaction, (*session).unwatch),

	"dbsize":    alone(famKeyspace, (*session).dbsize),
	"keys":      alone(famKeyspace, (*session).keys),
	"scan":      alone(famKeyspace, (*session).scan),
	"randomkey": alone(famKeyspace, (*session).randomKey),
	"flushdb":   alone(famKeyspace, (*session).flushDB),
	"flushall":  alone(famKeyspace, (*session).flushAll),

	"script":     alone(famScript, (*session).script),
	"function":   alone(famScript, (*session).function),
	"eval":       {family: famScript, run: relayScript, inMulti: true},
	"evalsha":    {family: famScript, run: relayScript, inMulti: true},
	"eval_ro":    {family: famScript, run: relayScript, inMulti: true},
	"evalsha_ro": {family: famScript, run: relayScript, inMulti: true},

	"publish":      {family: famPubSub, run: relayAnywhere, inMulti: true},
	"spublish":     {family: famPubSub, run: shardPublish, inMulti: true},
	"pubsub":       alone(famPubSub, (*session).pubsub),
	"subscribe":    alone(famPubSub, (*session).subscribe).subscribed(),
	"psubscribe":   alone(famPubSub, (*session).subscribe).subscribed(),
	"ssubscribe":   alone(famPubSub, (*session).subscribe).subscribed(),
	"unsubscribe":  alone(famPubSub, (*session).unsubscribe).subscribed(),
	"punsubscribe": alone(famPubSub, (*session).unsubscribe).subscribed(),
	"sunsubscribe": alone(famPubSub, (*session).unsubscribe).subscribed(),

	"blpop":      {family: famBlocking, run: blocking, inMulti: true},
	"brpop":      {family: famBlocking, run: blocking, inMulti: true},
	"blmove":     {family: famBlocking, run: blocking, inMulti: true},
	"brpoplpush": {family: famBlocking, run: blocking, inMulti: true},
	"blmpop":     {family: famBlocking, run: blocking, inMulti: true},
	"bzpopmin":   {family: famBlocking, run: blocking, inMulti: true},
	"bzpopmax":   {family: famBlocking, run: blocking, inMulti: true},
	"bzmpop":     {family: famBlocking, run: blocking, inMulti: true},
	"xread":      {family: famBlocking, run: blocking, inMulti: true},
	"xreadgroup": {family: famBlocking, run: blocking, inMulti: true},
}

// refusedCommands holds what cannot keep its meaning behind the proxy, with
// the reason that the client is told. A container refuses all its subcommands.
var refusedCommands = map[string]string{
	"cluster": clusterReason, "readonly": clusterReason, "readwrite": clusterReason, "asking": clusterReason,
	"replicaof": topologyReason, "slaveof": topologyReason, "failover": topologyReason,
	"psync": topologyReason, "sync": topologyReason, "replconf": topologyReason, "restore-asking": topologyReason,
	"migrate":  "the proxy places keys; use the cluster's own tools",
	"move":     "databases are mapped onto the cluster; a key cannot change its database in one step",
	"swapdb":   "databases are mapped onto the cluster and cannot change places",
	"debug":    adminReason,
	"shutdown": adminReason, "bgsave": adminReason, "bgrewriteaof": adminReason, "save": adminReason,
	"module": adminReason, "slowlog": adminReason, "latency": adminReason, "lastsave": adminReason,
	"monitor":    "it would show one node's commands with the names of other databases",
	"pfdebug":    adminReason,
	"pfselftest": adminReason,
	"wait":       "the proxy shares connections, so a node does not know which writes were yours; writes.replicas makes every write wait",

	"acl|cat": accountsReason, "acl|deluser": accountsReason, "acl|dryrun": accountsReason, "acl|genpass": accountsReason,
	"acl|getuser": accountsReason, "acl|list": accountsReason, "acl|load": accountsReason, "acl|log": accountsReason,
	"acl|save": accountsReason, "acl|setuser": accountsReason, "acl|users": accountsReason,
	"client|kill": adminReason, "client|pause": adminReason, "client|unpause": adminReason, "client|unblock": adminReason,
	"client|tracking": trackingReason, "client|caching": trackingReason, "client|trackinginfo": trackingReason,
	"config|resetstat": adminReason, "config|rewrite": adminReason, "config|set": adminReason,
	"function|kill": adminReason, "function|stats": adminReason, "script|kill": adminReason, "script|debug": adminReason,
}

const (
	clusterReason  = "the proxy shows the cluster as one standalone Redis"
	topologyReason = "replication belongs to the cluster behind the proxy"
	adminReason    = "administration happens at the nodes themselves"
	accountsReason = "accounts are in the proxy's configuration"
	trackingReason = "invalidation messages of several nodes cannot be told apart on shared connections"
	oneNodeReason  = "it concerns one node, or its meaning on a cluster is unknown"
)

// refusalOf says why a command is not available, "" when it is. Name is the
// command's or its container's.
func refusalOf(name string, info *route.Command) string {
	if reason, ok := refusedCommands[info.Name]; ok {
		return reason
	}
	if reason, ok := refusedCommands[name]; ok {
		return reason
	}
	if _, special := handlers[name]; special || isHelp(info) {
		return ""
	}
	if !info.HasKeys() || info.Flags&route.Admin != 0 {
		return oneNodeReason
	}
	return ""
}

// marked notes in a table which commands are refused.
func marked(t *route.Table) *route.Table {
	for _, c := range t.All() {
		if c.Sub != nil {
			c.Refusal = refusedCommands[c.Name] // its subcommands have their own, and unknown ones none
			continue
		}
		c.Refusal = refusalOf(c.Container(), c)
	}
	return t
}

func isHelp(info *route.Command) bool { return strings.HasSuffix(info.Name, "|help") }

func refusal(name, reason string) string {
	return "ERR fournines: " + strings.Replace(name, "|", " ", 1) + " is not available through the proxy: " + reason
}

// dispatch starts an operation: its answer is in o.local, on its way, or made
// by the function that is returned, which needs the session for itself.
func (s *session) dispatch(o *op) func(*session, *op) {
	args := o.cmd.Args
	var buf [32]byte
	name := buf[:0]
	for _, c := range args[0][:min(len(args[0]), len(buf))] {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		name = append(name, c)
	}
	h, special := handlers[string(name)]
	if !s.authed && !h.stranger {
		o.local = resp.AppendError(o.local, "NOAUTH Authentication required.")
		return nil
	}
	if s.subs.count() > 0 && s.version < 3 && !h.inSub {
		o.local = resp.AppendError(o.local, "ERR Can't execute '"+string(name)+"': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context")
		return nil
	}
	o.info = s.p.cluster.table.Load().Lookup(args)
	if s.tx != nil {
		switch string(name) {
		case "exec", "discard", "quit", "reset":
		case "multi":
			s.tx.aborted = true
			o.local = resp.AppendError(o.local, "ERR MULTI calls can not be nested")
			return nil
		case "watch":
			o.local = resp.AppendError(o.local, "ERR WATCH inside MULTI is not allowed")
			return nil
		default:
			s.counts[famTransaction]++
			s.queue(o)
			return nil
		}
	}
	if o.info == nil {
		s.counts[famRefused]++
		o.local = resp.AppendError(o.local, unknownCommand(args))
		return nil
	}
	if o.info.Sub != nil && len(args) > 1 && !special && o.info.Refusal == "" {
		o.local = resp.AppendError(o.local, unknownSubcommand(args))
		return nil
	}
	if !o.info.ArityOK(len(args)) {
		o.local = resp.AppendError(o.local, wrongArity(o.info.Name))
		return nil
	}
	// A refused container answers every subcommand, known or not, in one way.
	if o.info.Refusal != "" {
		s.counts[famRefused]++
		o.local = resp.AppendError(o.local, refusal(o.info.Name, o.info.Refusal))
		return nil
	}
	if isHelp(o.info) {
		return relayAnywhere(s, o)
	}
	if special {
		s.counts[h.family]++
		switch string(name) {
		case "multi":
			s.multi(o)
			return nil
		case "exec":
			return s.exec(o)
		case "discard":
			return s.discard(o)
		}
		return h.run(s, o)
	}
	return s.relay(o)
}

// relay sends a command to the node of its keys.
func (s *session) relay(o *op) func(*session, *op) {
	if o.info.Flags&route.ReadOnly != 0 {
		s.counts[famRead]++
	} else {
		s.counts[famWrite]++
	}
	if o.info.AskServer {
		return (*session).relayAskingKeys
	}
	if err := s.locate(o); err != nil {
		if errors.Is(err, errCrossSlot) && s.trySplit(o) {
			s.counts[famSplit]++
			return nil
		}
		o.local = resp.AppendError(o.local, err.Error())
		return nil
	}
	s.prepare(o)
	if !s.sendToReplica(o) {
		s.send(o)
	}
	return nil
}

// prepare sets what will be sent and how the answer is treated.
func (s *session) prepare(o *op) {
	if o.info.Flags&route.ReadOnly == 0 {
		s.writes(&o.payload)
	}
	o.payload.Args, o.payload.Keys, o.payload.Prefix = o.cmd.Args, o.keys, o.db.Prefix
	if len(o.db.Prefix) == 0 {
		o.payload.Raw = o.cmd.Raw
	}
	o.rewrite = rewriterFor(o)
}

// writes marks a request that changes data.
func (s *session) writes(p *upstream.Payload) {
	p.Write = true
	if s.p.cluster.replicas != nil {
		s.wrote = time.Now()
	}
}

var (
	errCrossSlot = errors.New("CROSSSLOT fournines: the keys are in different slots; database 0 is spread over the cluster, so give the keys a common {hash tag} or use a database from 1 to 15")
	errReserved  = errors.New("ERR fournines: in database 0 keys must not begin with {db1}: to {db15}:, which hold the other databases")
	errMoveDB    = errors.New("ERR fournines: a key cannot be copied to another database: databases are in different slots of the cluster")
)

// locate finds the keys of a command and the slot that holds them all. A shard
// channel has a slot like a key, in every database the same.
func (s *session) locate(o *op) error {
	if o.info.Name == "spublish" {
		o.keys, o.slot = o.keys[:0], keyspace.Slot(o.cmd.Args[1])
		return nil
	}
	keys, err := o.info.Keys(o.keys[:0], o.cmd.Args)
	o.keys = keys
	if err != nil {
		return errors.New("ERR " + err.Error())
	}
	return s.place(o)
}

// place checks the keys at o.keys and sets the slot.
func (s *session) place(o *op) error {
	if len(o.keys) > s.p.cfg.Limits.MaxKeysPerCommand {
		return errors.New("ERR fournines: more than " + strconv.Itoa(s.p.cfg.Limits.MaxKeysPerCommand) + " keys in one command (limits.maxKeysPerCommand)")
	}
	o.slot = o.db.Slot
	if o.info.Name == "copy" {
		for i := 3; i+1 < len(o.cmd.Args); i++ {
			if bytes.EqualFold(o.cmd.Args[i], []byte("db")) && string(o.cmd.Args[i+1]) != strconv.Itoa(o.db.Index) {
				return errMoveDB
			}
		}
	}
	if !o.db.Sharded() {
		return nil
	}
	o.slot = anySlot
	cross := false
	for _, k := range o.keys {
		key := o.cmd.Args[k]
		if keyspace.Reserved(key) {
			return errReserved
		}
		slot := keyspace.Slot(key)
		if o.slot == anySlot {
			o.slot = slot
		}
		cross = cross || slot != o.slot
	}
	if cross {
		return errCrossSlot
	}
	return nil
}

// relayAskingKeys is relay for commands whose keys only a node can tell.
func (s *session) relayAskingKeys(o *op) {
	ask := upstream.Payload{Raw: resp.AppendCommand(nil, append([][]byte{[]byte("COMMAND"), []byte("GETKEYS")}, o.cmd.Args...)...)}
	v, err := s.query(anySlot, &ask, true)
	if err != nil || v.Kind == resp.Error {
		o.local = resp.AppendError(o.local, "ERR fournines: the keys of this command cannot be told: "+string(v.Str))
		return
	}
	o.keys = o.keys[:0]
	at := 1
	for _, e := range v.Elems {
		for ; at < len(o.cmd.Args); at++ {
			if bytes.Equal(o.cmd.Args[at], e.Str) {
				o.keys = append(o.keys, at)
				at++
				break
			}
		}
	}
	if len(o.keys) != len(v.Elems) {
		o.local = resp.AppendError(o.local, "ERR fournines: the keys of this command cannot be told")
		return
	}
	if err := s.place(o); err != nil {
		o.local = resp.AppendError(o.local, err.Error())
		return
	}
	s.prepare(o)
	s.await(o)
}

// await sends an operation and stores its answer, from a function that has
// the session to itself.
func (s *session) await(o *op) {
	s.w.Begin()
	s.send(o)
	s.kick()
	s.w.Wait()
	s.complete(o, nil)
	if o.kind == opRemote {
		o.local = append(o.local[:0], o.req.Reply...)
		o.kind = opLocal
	}
}

// query sends one request of the proxy's own to the master of a slot and
// decodes the answer; repeat allows it after a lost connection.
func (s *session) query(slot int, p *upstream.Payload, repeat bool) (resp.Value, error) {
	m := s.p.cluster.slots.Load()
	return s.queryAt(s.target(m, slot, 0), slot, p, repeat)
}

var errUnknownResult = errors.New("connection lost, the result is unknown")

func (s *session) queryAt(addr string, slot int, p *upstream.Payload, repeat bool) (resp.Value, error) {
	var r upstream.Request
	if addr == "" {
		r.Err = upstream.ErrNotSent
	} else {
		s.ask(addr, &r, p)
	}
	x := exchange{req: &r, payload: p, slot: slot, addr: addr, repeat: repeat}
	if !s.settle(&x, nil) {
		return resp.Value{}, errUnknownResult
	}
	v, _, err := resp.Parse(r.Reply)
	return v, err
}

// relayAnywhere sends a command without keys to any master.
func relayAnywhere(s *session, o *op) func(*session, *op) {
	o.payload.Args, o.payload.Raw = o.cmd.Args, o.cmd.Raw
	o.slot = anySlot
	s.send(o)
	return nil
}

func (s *session) ping(o *op) {
	switch args := o.cmd.Args; {
	case len(args) > 2:
		o.local = resp.AppendError(o.local, wrongArity("ping"))
	case s.subs.count() > 0 && s.version < 3:
		o.local = resp.AppendArray(o.local, 2)
		o.local = resp.AppendBulkString(o.local, "pong")
		if len(args) == 2 {
			o.local = resp.AppendBulk(o.local, args[1])
		} else {
			o.local = resp.AppendBulkString(o.local, "")
		}
	case len(args) == 2:
		o.local = resp.AppendBulk(o.local, args[1])
	default:
		o.local = append(o.local, "+PONG\r\n"...)
	}
}

func (s *session) echo(o *op) { o.local = resp.AppendBulk(o.local, o.cmd.Args[1]) }

func (s *session) quit(o *op) {
	o.local = append(o.local, "+OK\r\n"...)
	s.closing = true
}

func (s *session) time(o *op) {
	now := time.Now()
	o.local = resp.AppendArray(o.local, 2)
	o.local = resp.AppendBulkString(o.local, strconv.FormatInt(now.Unix(), 10))
	o.local = resp.AppendBulkString(o.local, strconv.Itoa(now.Nanosecond()/1000))
}

func (s *session) selectDB(o *op) {
	n, err := strconv.Atoi(string(o.cmd.Args[1]))
	switch {
	case err != nil:
		o.local = resp.AppendError(o.local, "ERR value is not an integer or out of range")
	case n < 0 || n >= keyspace.Databases:
		o.local = resp.AppendError(o.local, "ERR DB index is out of range")
	default:
		s.db = &s.p.dbs[n]
		o.local = append(o.local, "+OK\r\n"...)
	}
}

func (s *session) unwatch(o *op) {
	s.dropWatch(true)
	o.local = append(o.local, "+OK\r\n"...)
}
