package rediscluster

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"fournines/component/internal/prepare"
	"fournines/internal/process"
)

// slotCount is fixed by Redis Cluster.
const slotCount = 16384

// retryPause is between two looks at a cluster that is still moving.
const retryPause = 100 * time.Millisecond

// FormConfig describes the cluster as a whole.
type FormConfig struct {
	// Name of the task in the plan; empty means "redis-cluster".
	Name string
	// Nodes are all nodes as planned.
	Nodes []Node
	// After names the units that have to be ready before: all nodes.
	After []string
	// AdminPassword is the password file of the account admin.
	AdminPassword string
	// Timeout bounds the whole task; 0 means 90 s.
	Timeout time.Duration
}

func (c *FormConfig) setDefaults() {
	if c.Name == "" {
		c.Name = "redis-cluster"
	}
	if c.Timeout == 0 {
		c.Timeout = 90 * time.Second
	}
}

func (c *FormConfig) validate() error {
	var f prepare.Fields
	f.Path("AdminPassword", c.AdminPassword)
	f.Check(c.shards() >= 3, "Nodes", "need at least three shards: fewer masters have no majority without one")
	masters := make(map[int]string)
	for i, n := range c.Nodes {
		f.NotEmpty(fmt.Sprintf("Nodes[%d].Name", i), n.Name)
		f.IP(fmt.Sprintf("Nodes[%d].Host", i), n.Host)
		if !n.Replica {
			f.Check(masters[n.Shard] == "", fmt.Sprintf("Nodes[%d].Shard", i), fmt.Sprintf("shard %d has two masters", n.Shard))
			masters[n.Shard] = n.Zone + "/" // never empty, also without zones
		}
	}
	for i, n := range c.Nodes {
		f.Check(masters[n.Shard] != "", fmt.Sprintf("Nodes[%d].Shard", i), fmt.Sprintf("shard %d has no master", n.Shard))
		if n.Replica && n.Zone != "" {
			f.Check(masters[n.Shard] != n.Zone+"/", fmt.Sprintf("Nodes[%d].Zone", i), "a replica in its master's zone dies with it")
		}
	}
	return f.Err("rediscluster")
}

func (c *FormConfig) shards() int {
	n := 0
	for _, node := range c.Nodes {
		n = max(n, node.Shard+1)
	}
	return n
}

// slots returns the first and last slot of a shard.
func (c *FormConfig) slots(shard int) (first, last int) {
	n := c.shards()
	return slotCount * shard / n, slotCount*(shard+1)/n - 1
}

// FormTask returns the plan's line that makes a cluster out of the nodes. It
// goes on from whatever an earlier, interrupted run has left; it moves no slot
// that is assigned, and after failovers it gives each master its place back
// (see Rebalance). It ends when every node sees all slots served and every
// replica is connected to its master.
func FormTask(cfg FormConfig) (process.Unit, error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return process.Unit{}, err
	}
	return process.Unit{
		Name: cfg.Name, Kind: "redis-cluster", After: cfg.After,
		Task: func(ctx context.Context) error {
			s, err := open(cfg)
			if err != nil {
				return err
			}
			defer s.close()
			ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
			defer cancel()
			return s.form(ctx)
		},
	}, nil
}

// session is one conversation with all nodes of a cluster.
type session struct {
	cfg   FormConfig
	nodes []*member
}

type member struct {
	Node
	client *redis.Client
	id     string
	view   []line // the member's own CLUSTER NODES
}

// line is one line of CLUSTER NODES.
type line struct {
	id, address, master       string
	myself, isMaster, failed  bool
	handshake, noAddr, linked bool
	slots                     [][2]int
}

func open(cfg FormConfig) (*session, error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	password, err := prepare.Secret(cfg.AdminPassword)
	if err != nil {
		return nil, err
	}
	s := &session{cfg: cfg}
	for _, n := range cfg.Nodes {
		s.nodes = append(s.nodes, &member{Node: n, client: dial(n.Address(), "admin", password)})
	}
	return s, nil
}

func (s *session) close() {
	for _, m := range s.nodes {
		_ = m.client.Close()
	}
}

// form repeats its steps until one look finds nothing left to do: every step
// acts on what the nodes said a moment ago, and gossip needs time to spread.
func (s *session) form(ctx context.Context) error {
	for {
		done, err := s.step(ctx)
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("form the Redis cluster: %w", err)
		case <-time.After(retryPause):
		}
	}
}

// step does the first thing that is missing. The error says what was missing.
func (s *session) step(ctx context.Context) (done bool, err error) {
	for _, m := range s.nodes {
		if err := m.look(ctx); err != nil {
			return false, err
		}
	}
	for _, do := range []func(context.Context) error{s.forgetStrangers, s.meet, s.assign, s.replicate, s.settled} {
		if err := do(ctx); err != nil {
			return false, err
		}
	}
	if moved, err := s.rebalance(ctx); moved || err != nil {
		return false, err
	}
	return true, nil
}

func (m *member) do(ctx context.Context, args ...any) error {
	if err := m.client.Do(ctx, args...).Err(); err != nil {
		return fmt.Errorf("%s: %v %v: %w", m.Name, args[0], args[1], err)
	}
	return nil
}

func (m *member) look(ctx context.Context) error {
	if err := reachable(ctx, m.Address()); err != nil {
		return fmt.Errorf("%s: %w", m.Name, err)
	}
	text, err := m.client.ClusterNodes(ctx).Result()
	if err != nil {
		return fmt.Errorf("%s: %w", m.Name, err)
	}
	if m.view, err = parseNodes(text); err != nil {
		return fmt.Errorf("%s: %w", m.Name, err)
	}
	m.id = m.self().id
	return nil
}

func (m *member) self() line {
	for _, l := range m.view {
		if l.myself {
			return l
		}
	}
	return line{}
}

func (m *member) knows(id string) (line, bool) {
	for _, l := range m.view {
		if l.id == id && !l.handshake && !l.noAddr {
			return l, true
		}
	}
	return line{}, false
}

// forgetStrangers drops what an emptied data directory leaves in the memory of
// the others: the same address under a former id.
func (s *session) forgetStrangers(ctx context.Context) error {
	ids := make(map[string]string, len(s.nodes)) // address to id
	for _, m := range s.nodes {
		ids[m.Address()] = m.id
	}
	for _, m := range s.nodes {
		for _, l := range m.view {
			if id, ours := ids[l.address]; !ours || id == l.id || l.handshake || l.id == m.self().master {
				continue
			}
			if err := m.do(ctx, "CLUSTER", "FORGET", l.id); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *session) meet(ctx context.Context) error {
	var missing error
	for i, m := range s.nodes {
		if len(m.view) == 1 && len(m.self().slots) == 0 {
			// Distinct epochs from the start spare the first masters their
			// collision rounds. Refused once the node has an epoch: fine.
			_ = m.client.Do(ctx, "CLUSTER", "SET-CONFIG-EPOCH", i+1).Err()
		}
		for _, other := range s.nodes {
			if _, ok := m.knows(other.id); ok {
				continue
			}
			missing = fmt.Errorf("%s does not know %s yet", m.Name, other.Name)
			port := other.Port
			if port == 0 {
				port = DefaultPort
			}
			if err := m.do(ctx, "CLUSTER", "MEET", other.Host, port); err != nil {
				return err
			}
		}
	}
	return missing
}

// assign gives the slots that nobody serves to the shard they were planned for.
func (s *session) assign(ctx context.Context) error {
	var taken [slotCount]bool
	for _, m := range s.nodes {
		for _, l := range m.view {
			for _, r := range l.slots {
				for slot := r[0]; slot <= r[1]; slot++ {
					taken[slot] = true
				}
			}
		}
	}
	var missing error
	for shard := range s.cfg.shards() {
		first, last := s.cfg.slots(shard)
		var args []any
		for slot := first; slot <= last; slot++ {
			if taken[slot] {
				continue
			}
			end := slot
			for end < last && !taken[end+1] {
				end++
			}
			args = append(args, slot, end)
			slot = end
		}
		if len(args) == 0 {
			continue
		}
		owner := s.masterFor(shard)
		if owner == nil {
			return fmt.Errorf("shard %d: no node of it is a master", shard)
		}
		missing = fmt.Errorf("shard %d had slots without an owner", shard)
		if err := owner.do(ctx, append([]any{"CLUSTER", "ADDSLOTSRANGE"}, args...)...); err != nil {
			return err
		}
	}
	return missing
}

// masterFor is the shard's node that should have its slots: the one that has
// some, else the planned one.
func (s *session) masterFor(shard int) *member {
	var planned, fallback *member
	for _, m := range s.nodes {
		if m.Shard != shard || !m.self().isMaster {
			continue
		}
		if len(m.self().slots) > 0 {
			return m
		}
		if !m.Replica {
			planned = m
		} else {
			fallback = m
		}
	}
	if planned != nil {
		return planned
	}
	return fallback
}

// replicate makes every node without slots a replica of its shard's master.
func (s *session) replicate(ctx context.Context) error {
	var missing error
	for _, m := range s.nodes {
		master := s.masterFor(m.Shard)
		if master == nil || m == master {
			continue
		}
		self := m.self()
		if len(self.slots) > 0 {
			return fmt.Errorf("%s and %s both have slots of shard %d", m.Name, master.Name, m.Shard)
		}
		if !self.isMaster && self.master == master.id {
			continue
		}
		missing = fmt.Errorf("%s is not a replica of %s yet", m.Name, master.Name)
		if err := m.do(ctx, "CLUSTER", "REPLICATE", master.id); err != nil {
			return err
		}
	}
	return missing
}

// settled checks that everybody sees the same whole cluster, and that every
// replica has its first copy: one without can never be promoted.
func (s *session) settled(ctx context.Context) error {
	for _, m := range s.nodes {
		text, err := m.client.ClusterInfo(ctx).Result()
		if err != nil {
			return fmt.Errorf("%s: %w", m.Name, err)
		}
		info := parseInfo(text)
		if info["cluster_state"] != "ok" || info["cluster_slots_ok"] != strconv.Itoa(slotCount) {
			return fmt.Errorf("%s: cluster is %s with %s of %d slots", m.Name, info["cluster_state"], info["cluster_slots_ok"], slotCount)
		}
		for _, other := range s.nodes {
			l, ok := m.knows(other.id)
			if !ok || l.failed {
				return fmt.Errorf("%s does not see %s well", m.Name, other.Name)
			}
			if l.isMaster != other.self().isMaster {
				return fmt.Errorf("%s has not heard of the role of %s yet", m.Name, other.Name)
			}
		}
		if m.self().isMaster {
			continue
		}
		text, err = m.client.Info(ctx, "replication").Result()
		if err != nil {
			return fmt.Errorf("%s: %w", m.Name, err)
		}
		if parseInfo(text)["master_link_status"] != "up" {
			return fmt.Errorf("%s is not connected to its master yet", m.Name)
		}
	}
	return nil
}

// rebalance makes the planned master of each shard master again.
func (s *session) rebalance(ctx context.Context) (moved bool, err error) {
	for _, m := range s.nodes {
		if m.Replica || m.self().isMaster {
			continue
		}
		// The present master waits until this replica has everything, so no
		// acknowledged write is lost and clients see one redirect.
		if err := m.do(ctx, "CLUSTER", "FAILOVER"); err != nil {
			return moved, err
		}
		return true, fmt.Errorf("%s is taking its place as master back", m.Name)
	}
	return false, nil
}

// Rebalance waits for a whole cluster and gives each planned master its place
// back. After a zone was lost its masters' replicas lead, so another zone has
// two masters of three: losing that zone next would leave no majority. Run it
// when the lost zone is back.
func Rebalance(ctx context.Context, cfg FormConfig) error {
	s, err := open(cfg)
	if err != nil {
		return err
	}
	defer s.close()
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	return s.form(ctx)
}

func parseNodes(text string) ([]line, error) {
	var lines []line
	for raw := range strings.Lines(text) {
		f := strings.Fields(raw)
		if len(f) == 0 {
			continue
		}
		if len(f) < 8 {
			return nil, fmt.Errorf("unknown form of CLUSTER NODES: %q", raw)
		}
		l := line{id: f[0], linked: f[7] == "connected"}
		l.address, _, _ = strings.Cut(f[1], "@")
		for flag := range strings.SplitSeq(f[2], ",") {
			switch flag {
			case "myself":
				l.myself = true
			case "master":
				l.isMaster = true
			case "fail", "fail?":
				l.failed = true
			case "handshake":
				l.handshake = true
			case "noaddr":
				l.noAddr = true
			}
		}
		if f[3] != "-" {
			l.master = f[3]
		}
		for _, r := range f[8:] {
			if strings.HasPrefix(r, "[") {
				continue // a slot on its way between two nodes
			}
			from, to, ok := strings.Cut(r, "-")
			if !ok {
				to = from
			}
			first, err1 := strconv.Atoi(from)
			last, err2 := strconv.Atoi(to)
			if err := errors.Join(err1, err2); err != nil || first < 0 || last >= slotCount || first > last {
				return nil, fmt.Errorf("unknown slots %q in CLUSTER NODES", r)
			}
			l.slots = append(l.slots, [2]int{first, last})
		}
		lines = append(lines, l)
	}
	return lines, nil
}
