package rediscluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"fournines/component/internal/prepare"
	"fournines/topology"
)

// OperatorConfig says how to reach a running cluster, ours or any other.
type OperatorConfig struct {
	// Nodes are some members, with names and zones where they are known; the
	// others are discovered.
	Nodes []topology.Endpoint
	// User may administrate, and PasswordFile holds its password; an empty file
	// name means no authentication.
	User, PasswordFile string
}

// Operator looks after a running cluster. Close it when done.
type Operator struct {
	user, password string
	known          map[string]topology.Endpoint // by address
	seeds          []string

	mu      sync.Mutex
	clients map[string]*redis.Client
}

// NewOperator reads the password and connects to nothing yet.
func NewOperator(cfg OperatorConfig) (*Operator, error) {
	if len(cfg.Nodes) == 0 {
		return nil, errors.New("no node is named")
	}
	o := &Operator{user: cfg.User, known: make(map[string]topology.Endpoint), clients: make(map[string]*redis.Client)}
	if cfg.PasswordFile != "" {
		var err error
		if o.password, err = prepare.Secret(cfg.PasswordFile); err != nil {
			return nil, err
		}
	}
	for _, n := range cfg.Nodes {
		o.seeds = append(o.seeds, n.Address)
		o.known[n.Address] = n
	}
	return o, nil
}

// Close ends the connections.
func (o *Operator) Close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.clients {
		_ = c.Close()
	}
}

func (o *Operator) client(address string) *redis.Client {
	o.mu.Lock()
	defer o.mu.Unlock()
	c := o.clients[address]
	if c == nil {
		c = dial(address, o.user, o.password)
		o.clients[address] = c
	}
	return c
}

// NodeStatus is one member as the cluster and it itself say.
type NodeStatus struct {
	Name    string `json:"name"`
	Zone    string `json:"zone,omitempty"`
	Address string `json:"address"`
	ID      string `json:"id"`
	Role    string `json:"role"` // master or replica
	// State is ok, failed (the cluster's word) or unreachable (ours).
	State string `json:"state"`
	// Slots is how many a master serves.
	Slots int `json:"slots,omitempty"`
	// Keys, MemoryBytes, MaxMemoryBytes and Clients are the node's own figures.
	Keys           int64  `json:"keys"`
	MemoryBytes    int64  `json:"memoryBytes"`
	MaxMemoryBytes int64  `json:"maxMemoryBytes"`
	Clients        int64  `json:"clients"`
	Version        string `json:"version,omitempty"`
	// Linked tells for a replica that it follows its master; LagBytes is how far
	// it is behind.
	Linked   bool  `json:"linked,omitempty"`
	LagBytes int64 `json:"lagBytes"`

	offset int64
	view   []line
	moving []transit // as the node says
}

// transit is a slot on its way.
type transit struct {
	slot int
	out  bool   // sent away by the node, else awaited by it
	peer string // id of the other side
}

// ShardStatus is a master and its replicas.
type ShardStatus struct {
	Master   NodeStatus   `json:"master"`
	Replicas []NodeStatus `json:"replicas"`
	ranges   [][2]int
}

// Status is the whole cluster.
type Status struct {
	// State is ok, degraded (something is wrong, all slots are served) or down
	// (some slots are not).
	State string `json:"state"`
	// SlotsServed is how many of the 16384 slots have a master that is up.
	SlotsServed int           `json:"slotsServed"`
	Shards      []ShardStatus `json:"shards"`
	// Problems are what to do something about; empty is good.
	Problems []string `json:"problems"`
}

// Status asks every member. An error means that none answered.
func (o *Operator) Status(ctx context.Context) (*Status, error) {
	view, err := o.view(ctx)
	if err != nil {
		return nil, err
	}
	nodes := make([]NodeStatus, len(view))
	var wg sync.WaitGroup
	for i, l := range view {
		wg.Go(func() { nodes[i] = o.node(ctx, l) })
	}
	wg.Wait()
	return assess(view, nodes), nil
}

// view is CLUSTER NODES of the first member that answers.
func (o *Operator) view(ctx context.Context) ([]line, error) {
	var errs []error
	for _, address := range o.seeds {
		text, err := o.client(address).ClusterNodes(ctx).Result()
		if err == nil {
			var lines []line
			if lines, err = parseNodes(text); err == nil {
				return lines, nil
			}
		}
		errs = append(errs, fmt.Errorf("%s: %w", address, err))
	}
	return nil, fmt.Errorf("no member of the cluster answers: %w", errors.Join(errs...))
}

// node asks one member about itself.
func (o *Operator) node(ctx context.Context, l line) NodeStatus {
	n := NodeStatus{Address: l.address, ID: l.id, Role: "replica", State: "ok", Name: l.address}
	if known, ok := o.known[l.address]; ok {
		n.Zone = known.Zone
		if known.Name != "" {
			n.Name = known.Name
		}
	}
	if l.isMaster {
		n.Role = "master"
		for _, r := range l.slots {
			n.Slots += r[1] - r[0] + 1
		}
	}
	if l.failed {
		n.State = "failed"
	}
	c := o.client(l.address)
	text, err := c.Info(ctx, "everything").Result()
	if err != nil {
		if n.State == "ok" {
			n.State = "unreachable"
		}
		return n
	}
	info := parseInfo(text)
	number := func(key string) int64 {
		v, _ := strconv.ParseInt(info[key], 10, 64)
		return v
	}
	n.MemoryBytes, n.MaxMemoryBytes, n.Clients = number("used_memory"), number("maxmemory"), number("connected_clients")
	n.Version = info["redis_version"]
	if keys, _, ok := strings.Cut(strings.TrimPrefix(info["db0"], "keys="), ","); ok {
		n.Keys, _ = strconv.ParseInt(keys, 10, 64)
	}
	n.offset = number("master_repl_offset")
	if n.Role == "replica" {
		n.Linked = info["master_link_status"] == "up"
		n.offset = number("slave_repl_offset")
	}
	if text, err := c.ClusterNodes(ctx).Result(); err == nil {
		n.view, _ = parseNodes(text)
		n.moving = movingSlots(text)
	}
	return n
}

// movingSlots reads the entries "[93->-id]" and "[93-<-id]" of a node's own
// line.
func movingSlots(text string) []transit {
	var out []transit
	for raw := range strings.Lines(text) {
		f := strings.Fields(raw)
		if len(f) < 9 || !strings.Contains(f[2], "myself") {
			continue
		}
		for _, r := range f[8:] {
			p := strings.SplitN(strings.Trim(r, "[]"), "-", 3)
			if slot, err := strconv.Atoi(p[0]); err == nil && strings.HasPrefix(r, "[") && len(p) == 3 {
				out = append(out, transit{slot: slot, out: p[1] == ">", peer: p[2]})
			}
		}
	}
	return out
}

// memoryFull is from which share of its limit a node's memory is a problem.
const memoryFull = 0.9

// assess puts nodes together and says what is wrong.
func assess(view []line, nodes []NodeStatus) *Status {
	s := &Status{Problems: []string{}}
	bad := func(format string, args ...any) { s.Problems = append(s.Problems, fmt.Sprintf(format, args...)) }
	masters := make(map[string][]string) // zone to names
	moving := make(map[int]bool)
	versions := make(map[string]bool)
	for i, l := range view {
		n := nodes[i]
		if n.State != "ok" {
			bad("%s is %s", n.Name, n.State)
		}
		if n.Version != "" {
			versions[n.Version] = true
		}
		if n.MaxMemoryBytes > 0 && float64(n.MemoryBytes) > memoryFull*float64(n.MaxMemoryBytes) {
			bad("%s uses %d of %d MiB: above that it refuses writes", n.Name, n.MemoryBytes>>20, n.MaxMemoryBytes>>20)
		}
		for _, t := range n.moving {
			moving[t.slot] = true
		}
		for _, other := range n.view {
			for j, mine := range view {
				if mine.id == other.id && !slices.Equal(mine.slots, other.slots) && nodes[j].State == "ok" {
					bad("%s and others do not agree which slots %s has", n.Name, nodes[j].Name)
				}
			}
		}
		if !l.isMaster || len(l.slots) == 0 {
			continue
		}
		shard := ShardStatus{Master: n, Replicas: []NodeStatus{}, ranges: l.slots}
		if n.State == "ok" {
			s.SlotsServed += n.Slots
		}
		outside := false
		for j, other := range view {
			if other.master != l.id {
				continue
			}
			r := nodes[j]
			if r.State == "ok" && !r.Linked {
				bad("%s does not follow its master %s", r.Name, n.Name)
			}
			if r.State == "ok" {
				r.LagBytes = max(0, n.offset-r.offset)
				outside = outside || r.Zone == "" || r.Zone != n.Zone
			}
			shard.Replicas = append(shard.Replicas, r)
		}
		switch {
		case !slices.ContainsFunc(shard.Replicas, func(r NodeStatus) bool { return r.State == "ok" }):
			bad("%s has no replica that is up: its death takes %d slots", n.Name, n.Slots)
		case !outside:
			bad("%s has no replica outside zone %s", n.Name, n.Zone)
		}
		if n.Zone != "" {
			masters[n.Zone] = append(masters[n.Zone], n.Name)
		}
		s.Shards = append(s.Shards, shard)
	}
	slices.SortFunc(s.Shards, func(a, b ShardStatus) int { return a.ranges[0][0] - b.ranges[0][0] })
	for _, zone := range slices.Sorted(maps.Keys(masters)) {
		if names := masters[zone]; 2*len(names) >= len(s.Shards) {
			bad("zone %s has %d of %d masters (%s): without it there is no majority to elect others", zone, len(names), len(s.Shards), strings.Join(names, ", "))
		}
	}
	if s.SlotsServed < slotCount {
		bad("%d of %d slots are not served", slotCount-s.SlotsServed, slotCount)
	}
	if len(moving) > 0 {
		bad("slots %v are on their way between nodes: a reshard goes on, or was cut off and the next one ends it", slices.Sorted(maps.Keys(moving)))
	}
	if len(versions) > 1 {
		bad("the nodes run different versions: %s", strings.Join(slices.Sorted(maps.Keys(versions)), ", "))
	}
	switch {
	case s.SlotsServed < slotCount:
		s.State = "down"
	case len(s.Problems) > 0:
		s.State = "degraded"
	default:
		s.State = "ok"
	}
	return s
}

// find returns the member that a person means by name or address.
func (s *Status) find(name string) (NodeStatus, *ShardStatus, error) {
	var names []string
	for i := range s.Shards {
		sh := &s.Shards[i]
		for _, n := range append([]NodeStatus{sh.Master}, sh.Replicas...) {
			if n.Name == name || n.Address == name {
				return n, sh, nil
			}
			names = append(names, n.Name)
		}
	}
	return NodeStatus{}, nil, fmt.Errorf("%q is not a node of the cluster; there are %s", name, strings.Join(names, ", "))
}

// Failover makes the replica called name the master of its shard and returns
// when every member knows. The master waits until the replica has everything,
// so nothing is lost; with force it is not asked, for one that is dead, and
// writes that had not reached the replica are lost.
func (o *Operator) Failover(ctx context.Context, name string, force bool) (old, next NodeStatus, err error) {
	s, err := o.Status(ctx)
	if err != nil {
		return old, next, err
	}
	next, shard, err := s.find(name)
	if err != nil {
		return old, next, err
	}
	old = shard.Master
	switch {
	case next.Role == "master":
		return old, next, fmt.Errorf("%s is a master already", next.Name)
	case next.State != "ok":
		return old, next, fmt.Errorf("%s is %s", next.Name, next.State)
	case !force && old.State != "ok":
		return old, next, fmt.Errorf("its master %s is %s; --force goes on without it", old.Name, old.State)
	case !force && !next.Linked:
		return old, next, fmt.Errorf("%s does not follow its master, so it would lose writes; --force accepts that", next.Name)
	}
	args := []any{"CLUSTER", "FAILOVER"}
	if force {
		args = append(args, "FORCE")
	}
	for try := 0; ; try++ {
		err := o.client(next.Address).Do(ctx, args...).Err()
		if err != nil && try == 0 {
			return old, next, fmt.Errorf("%s: %w", next.Name, err)
		}
		within, cancel := context.WithTimeout(ctx, failoverTry)
		err = o.await(within, func(view []line) error {
			for _, l := range view {
				if l.id == next.ID && l.isMaster && len(l.slots) > 0 {
					return nil
				}
			}
			return fmt.Errorf("%s has not become master", next.Name)
		})
		cancel()
		if err == nil || ctx.Err() != nil {
			return old, next, err
		}
	}
}

// failoverTry is after which time a failover is asked for again. Redis gives one up
// after 5 s and does not say so: when the machine is busy, or because the masters
// vote for one shard only once in two cluster-node-timeouts.
const failoverTry = 6 * time.Second

// await asks every member that is up until all views satisfy f.
func (o *Operator) await(ctx context.Context, f func(view []line) error) error {
	for {
		view, err := o.view(ctx)
		for _, l := range view {
			if l.failed || err != nil {
				continue
			}
			text, e := o.client(l.address).ClusterNodes(ctx).Result()
			if e != nil {
				continue // the cluster will say that it has failed
			}
			var lines []line
			if lines, err = parseNodes(text); err == nil {
				err = f(lines)
			}
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, context.Cause(ctx))
		case <-time.After(retryPause):
		}
	}
}
