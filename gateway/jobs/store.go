package jobs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

var (
	// errNotReplicated means that a write is on the master and no replica has
	// confirmed it in time.
	errNotReplicated = errors.New("no replica confirmed in time")
	errNoJob         = errors.New("no such job")
)

// storePause separates two attempts at a write while a master is being replaced.
const storePause = 50 * time.Millisecond

// store keeps the records.
type store struct {
	client  redis.UniversalClient
	durable bool
	wait    time.Duration // for a replica
	// lone are the masters, by address, that had no replica a moment ago.
	lone sync.Map // string -> struct{}
	// slots of the queues; nil until Redis has said them. For one goroutine.
	slots []int
}

// assurance is how much a write needs.
type assurance bool

const (
	// confirmed needs a replica that has it.
	confirmed assurance = false
	// confirmedIfAny needs one unless the cluster agrees that the master has none
	// that could take its place: what was accepted goes on then.
	confirmedIfAny assurance = true
)

// reply is what a script answers: a word, then more.
type reply struct {
	word string
	more []any
}

func (r reply) text(i int) string {
	if i < len(r.more) {
		switch v := r.more[i].(type) {
		case string:
			return v
		case int64:
			return strconv.FormatInt(v, 10)
		}
	}
	return ""
}

func (r reply) number(i int) int64 {
	n, _ := strconv.ParseInt(r.text(i), 10, 64)
	return n
}

func (r reply) record(queue int, id string, i int) (*record, error) {
	var flat []any
	if i < len(r.more) {
		flat, _ = r.more[i].([]any)
	}
	m := make(map[string]string, len(flat)/2)
	for j := 0; j+1 < len(flat); j += 2 {
		k, _ := flat[j].(string)
		v, _ := flat[j+1].(string)
		m[k] = v
	}
	return parseRecord(queue, id, m)
}

func parseReply(v any, err error) (reply, error) {
	if err != nil {
		return reply{}, err
	}
	list, ok := v.([]any)
	if !ok || len(list) == 0 {
		return reply{}, fmt.Errorf("unexpected answer %T from a script", v)
	}
	word, _ := list[0].(string)
	return reply{word: word, more: list[1:]}, nil
}

// run executes a script for one job.
func (s *store) run(ctx context.Context, script, id, idem string, args ...any) (reply, error) {
	queue, ok := queueOf(id)
	if !ok {
		return reply{}, errNoJob
	}
	return parseReply(s.client.Eval(ctx, script, keys(queue, id, idem), append([]any{id}, args...)...).Result())
}

// runPatiently executes a script for one job and tries until ctx ends while a
// master is being replaced.
func (s *store) runPatiently(ctx context.Context, script, id, idem string, args ...any) (reply, error) {
	for {
		r, err := s.run(ctx, script, id, idem, args...)
		if err == nil || !passing(err) {
			return r, err
		}
		timer := time.NewTimer(storePause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return r, err
		}
	}
}

// runDurably executes a script for one job and returns when a replica has what
// it wrote, or errNotReplicated. The script and WAIT go over one connection: WAIT
// speaks of what was written on it before, and replication keeps the order. While
// a master is being replaced it tries again until ctx ends; scripts may be sent twice.
func (s *store) runDurably(ctx context.Context, need assurance, script, id, idem string, args ...any) (reply, error) {
	if !s.durable {
		return s.run(ctx, script, id, idem, args...)
	}
	queue, ok := queueOf(id)
	if !ok {
		return reply{}, errNoJob
	}
	all := append([]any{id}, args...)
	k := keys(queue, id, idem)
	for {
		r, err := s.once(ctx, need, script, k, all)
		if err == nil || errors.Is(err, errNotReplicated) || !passing(err) {
			return r, err
		}
		if cluster, ok := s.client.(*redis.ClusterClient); ok {
			cluster.ReloadState(ctx)
		}
		timer := time.NewTimer(storePause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return reply{}, fmt.Errorf("%w (%w)", err, ctx.Err())
		}
	}
}

func (s *store) once(ctx context.Context, need assurance, script string, keys []string, args []any) (reply, error) {
	node, err := s.master(ctx, keys[0])
	if err != nil {
		return reply{}, err
	}
	conn := node.Conn()
	defer conn.Close()
	r, err := parseReply(conn.Eval(ctx, script, keys, args...).Result())
	if err != nil {
		return reply{}, err
	}
	address := node.Options().Addr
	if _, was := s.lone.Load(address); was && need == confirmedIfAny && alone(ctx, conn) {
		return r, nil // without waiting for nobody
	}
	n, err := conn.Wait(ctx, 1, s.wait).Result()
	if err != nil {
		return reply{}, err
	}
	if n > 0 {
		s.lone.Delete(address)
		return r, nil
	}
	if need == confirmedIfAny && alone(ctx, conn) {
		s.lone.Store(address, struct{}{})
		return r, nil
	}
	return r, errNotReplicated
}

// alone tells whether, by the master's own view, no replica of it could be made
// master: it has none, or the majority of masters agrees that they have failed. A
// replica that only this master does not reach ("fail?") counts: it may be on the
// side of the majority.
func alone(ctx context.Context, conn *redis.Conn) bool {
	nodes, err := conn.ClusterNodes(ctx).Result()
	return err == nil && !hasReplica(nodes, "")
}

// hasReplica reads the answer of CLUSTER NODES: whether the master with that id,
// or the one that answered ("myself"), has a replica that has not failed.
func hasReplica(nodes, master string) bool {
	type node struct {
		flags  []string
		master string
	}
	var all []node
	for line := range strings.Lines(nodes) {
		f := strings.Fields(line)
		if len(f) < 4 {
			continue
		}
		flags := strings.Split(f[2], ",")
		if master == "" && slices.Contains(flags, "myself") {
			master = f[0]
		}
		all = append(all, node{flags, f[3]})
	}
	for _, n := range all {
		if n.master == master && slices.Contains(n.flags, "slave") && !slices.Contains(n.flags, "fail") && !slices.Contains(n.flags, "noaddr") {
			return true
		}
	}
	return false
}

func (s *store) master(ctx context.Context, key string) (*redis.Client, error) {
	switch c := s.client.(type) {
	case *redis.ClusterClient:
		return c.MasterForKey(ctx, key)
	case *redis.Client:
		return c, nil
	}
	return nil, fmt.Errorf("a client of type %T has no master", s.client)
}

// passing tells whether an error is one of those that a failover brings and that
// go away with it. Everything that is not an answer of a server is.
func passing(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) && !isServerAnswer(err) {
		return true // the caller's own loop looks at its context
	}
	if !isServerAnswer(err) {
		return true
	}
	if _, moved := redis.IsMovedError(err); moved {
		return true
	}
	if _, ask := redis.IsAskError(err); ask {
		return true
	}
	return redis.IsReadOnlyError(err) || redis.IsClusterDownError(err) || redis.IsLoadingError(err) ||
		redis.IsMasterDownError(err) || redis.IsTryAgainError(err) || strings.HasPrefix(err.Error(), "UNBLOCKED")
}

func isServerAnswer(err error) bool {
	var answer redis.Error
	return errors.As(err, &answer)
}

// load reads a record.
func (s *store) load(ctx context.Context, id string) (*record, error) {
	queue, ok := queueOf(id)
	if !ok {
		return nil, errNoJob
	}
	m, err := s.client.HGetAll(ctx, jobPrefix(queue)+id).Result()
	if err != nil {
		return nil, err
	}
	if len(m) == 0 || m["state"] == "" {
		return nil, errNoJob
	}
	return parseRecord(queue, id, m)
}

// entry is one event of a job as it is kept.
type entry struct {
	id     string // run-number
	sealed []byte
}

// events reads at most n events after the one with id after; "" is the beginning.
func (s *store) events(ctx context.Context, id, after string, n int64) ([]entry, error) {
	queue, ok := queueOf(id)
	if !ok {
		return nil, errNoJob
	}
	start := "-"
	if after != "" {
		start = "(" + after
	}
	list, err := s.client.XRangeN(ctx, eventsKey(queue, id), start, "+", n).Result()
	if err != nil {
		return nil, err
	}
	out := make([]entry, 0, len(list))
	for _, m := range list {
		if d, ok := m.Values["d"].(string); ok {
			out = append(out, entry{id: m.ID, sealed: []byte(d)})
		}
	}
	return out, nil
}

// ids lists the newest n entries of one of a queue's lists.
func (s *store) ids(ctx context.Context, queue int, list string, n int64) ([]redis.Z, error) {
	return s.client.ZRevRangeWithScores(ctx, keyPrefix(queue)+list, 0, n-1).Result()
}

// sweep is what sweepScript says about a queue.
type sweep struct {
	expired, orphans, hooks, index, deadIDs []string

	queued, running, dead, hooksWaiting, hooksDead int64
	oldest                                         time.Duration
}

func (s *store) sweep(ctx context.Context, queue int, missing time.Duration, n int) (sweep, error) {
	v, err := s.client.Eval(ctx, sweepScript, keys(queue, "", ""), "", missing.Milliseconds(), n).Result()
	if err != nil {
		return sweep{}, err
	}
	list, ok := v.([]any)
	if !ok || len(list) != 11 {
		return sweep{}, fmt.Errorf("unexpected answer %T from a script", v)
	}
	ids := func(i int) []string {
		var out []string
		all, _ := list[i].([]any)
		for _, e := range all {
			if id, ok := e.(string); ok {
				out = append(out, id)
			}
		}
		return out
	}
	number := func(i int) int64 { n, _ := list[i].(int64); return n }
	return sweep{
		expired: ids(0), orphans: ids(1), hooks: ids(2), index: ids(3), deadIDs: ids(4),
		queued: number(5), running: number(6), dead: number(7), hooksWaiting: number(8), hooksDead: number(9),
		oldest: time.Duration(number(10)) * time.Millisecond,
	}, nil
}

// replicated tells for each queue whether its master has a replica. It is not
// safe for concurrent use.
func (s *store) replicated(ctx context.Context) ([queues]bool, error) {
	var has [queues]bool
	cluster, ok := s.client.(*redis.ClusterClient)
	if !ok {
		return has, nil
	}
	nodes, err := cluster.ClusterNodes(ctx).Result()
	if err != nil {
		return has, err
	}
	if s.slots == nil {
		slots := make([]int, queues)
		for q := range slots {
			slot, err := cluster.ClusterKeySlot(ctx, keyPrefix(q)).Result()
			if err != nil {
				return has, err
			}
			slots[q] = int(slot)
		}
		s.slots = slots
	}
	for q, slot := range s.slots {
		if master := slotOwner(nodes, slot); master != "" {
			has[q] = hasReplica(nodes, master)
		}
	}
	return has, nil
}

// slotOwner reads the answer of CLUSTER NODES: the id of the slot's master.
func slotOwner(nodes string, slot int) string {
	for line := range strings.Lines(nodes) {
		f := strings.Fields(line)
		for i := 8; i < len(f); i++ {
			first, last, isRange := strings.Cut(f[i], "-")
			a, err := strconv.Atoi(first)
			if err != nil {
				break // a slot on its way: [slot->-node]
			}
			b := a
			if isRange {
				if b, err = strconv.Atoi(last); err != nil {
					break
				}
			}
			if a <= slot && slot <= b {
				return f[0]
			}
		}
	}
	return ""
}

// noneIsGone turns Redis's "nil" into errNoJob.
func noneIsGone(err error) error {
	if errors.Is(err, redis.Nil) {
		return errNoJob
	}
	return err
}
