package rediscluster

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
)

// Move is some slots that change their master.
type Move struct {
	From, To NodeStatus
	Slots    []int
}

// PlanMove takes n slots, the highest first, from the master called from to the
// one called to.
func (s *Status) PlanMove(from, to string, n int) (*Move, error) {
	src, shard, err := s.find(from)
	if err != nil {
		return nil, err
	}
	dst, _, err := s.find(to)
	if err != nil {
		return nil, err
	}
	switch {
	case src.Role != "master" || dst.Role != "master":
		return nil, fmt.Errorf("slots move between masters; %s is a %s and %s a %s", src.Name, src.Role, dst.Name, dst.Role)
	case src.ID == dst.ID:
		return nil, fmt.Errorf("%s has its slots already", src.Name)
	case n < 1 || n > src.Slots:
		return nil, fmt.Errorf("%s has %d slots, so 1 to %d can be moved, not %d", src.Name, src.Slots, src.Slots, n)
	}
	return &Move{From: src, To: dst, Slots: shard.highest(n)}, nil
}

// highest lists the n highest slots of a shard.
func (s *ShardStatus) highest(n int) []int {
	var out []int
	for _, r := range slices.Backward(s.ranges) {
		for slot := r[1]; slot >= r[0] && len(out) < n; slot-- {
			out = append(out, slot)
		}
	}
	return out
}

// has tells whether the shard serves a slot.
func (s *ShardStatus) has(slot int) bool {
	return slices.ContainsFunc(s.ranges, func(r [2]int) bool { return r[0] <= slot && slot <= r[1] })
}

// PlanBalance makes the masters' numbers of slots equal, give or take one.
func (s *Status) PlanBalance() []*Move {
	if len(s.Shards) == 0 {
		return nil
	}
	type side struct {
		shard *ShardStatus
		extra int
	}
	var sides []side
	for i := range s.Shards {
		sides = append(sides, side{shard: &s.Shards[i]})
	}
	// The fullest keep what cannot be divided, so that as little moves as can.
	slices.SortStableFunc(sides, func(a, b side) int { return cmp.Compare(b.shard.Master.Slots, a.shard.Master.Slots) })
	for i := range sides {
		want := slotCount / len(sides)
		if i < slotCount%len(sides) {
			want++
		}
		sides[i].extra = sides[i].shard.Master.Slots - want
	}
	var moves []*Move
	taken := make(map[string]int)
	for i := range sides {
		for j := range sides {
			n := min(sides[i].extra, -sides[j].extra)
			if n <= 0 {
				continue
			}
			src := sides[i].shard
			slots := src.highest(taken[src.Master.ID] + n)[taken[src.Master.ID]:]
			taken[src.Master.ID] += n
			moves = append(moves, &Move{From: src.Master, To: sides[j].shard.Master, Slots: slots})
			sides[i].extra -= n
			sides[j].extra += n
		}
	}
	return moves
}

const (
	// migrateKeys is how many keys go in one step; the source stands still for it.
	migrateKeys = 50
	// migrateMillis bounds one step.
	migrateMillis = 10000
)

// Execute moves the slots one after another, with their keys, while clients go
// on; progress is told of each slot. When it is cut off, the slot under way
// stays half moved: Mend, or the same move again, ends it.
func (o *Operator) Execute(ctx context.Context, m *Move, progress func(slot, keys int)) error {
	for _, slot := range m.Slots {
		keys, err := o.moveSlot(ctx, slot, m.From.Address, m.From.ID, m.To.Address, m.To.ID)
		if err != nil {
			return fmt.Errorf("slot %d from %s to %s: %w", slot, m.From.Name, m.To.Name, err)
		}
		progress(slot, keys)
	}
	return nil
}

func (o *Operator) moveSlot(ctx context.Context, slot int, from, fromID, to, toID string) (moved int, err error) {
	src, dst := o.client(from), o.client(to)
	if err := dst.Do(ctx, "CLUSTER", "SETSLOT", slot, "IMPORTING", fromID).Err(); err != nil {
		return 0, err
	}
	if err := src.Do(ctx, "CLUSTER", "SETSLOT", slot, "MIGRATING", toID).Err(); err != nil {
		return 0, err
	}
	host, port, err := net.SplitHostPort(to)
	if err != nil {
		return 0, err
	}
	for {
		keys, err := src.ClusterGetKeysInSlot(ctx, slot, migrateKeys).Result()
		if err != nil {
			return moved, err
		}
		if len(keys) == 0 {
			break
		}
		args := []any{"MIGRATE", host, port, "", 0, migrateMillis}
		switch {
		case o.user != "" && o.password != "":
			args = append(args, "AUTH2", o.user, o.password)
		case o.password != "":
			args = append(args, "AUTH", o.password)
		}
		args = append(args, "KEYS")
		for _, k := range keys {
			args = append(args, k)
		}
		if err := src.Do(ctx, args...).Err(); err != nil {
			return moved, err
		}
		moved += len(keys)
	}
	// The new owner first: were it told last and died, the slot would be nobody's.
	for _, address := range []string{to, from} {
		if err := o.client(address).Do(ctx, "CLUSTER", "SETSLOT", slot, "NODE", toID).Err(); err != nil {
			return moved, err
		}
	}
	return moved, nil
}

// Mend ends moves that were cut off: a slot that its owner sends away goes to
// where it was going; what a node waits for in vain, or sends away though another
// has it, it forgets. It returns the slots.
func (o *Operator) Mend(ctx context.Context) ([]int, error) {
	s, err := o.Status(ctx)
	if err != nil {
		return nil, err
	}
	var mended []int
	for _, shard := range s.Shards {
		for _, t := range shard.Master.moving {
			if !t.out || !shard.has(t.slot) {
				continue
			}
			to := s.byID(t.peer)
			if to == nil {
				return mended, fmt.Errorf("slot %d was going from %s to a node that is not there: %s", t.slot, shard.Master.Name, t.peer)
			}
			if _, err := o.moveSlot(ctx, t.slot, shard.Master.Address, shard.Master.ID, to.Address, to.ID); err != nil {
				return mended, fmt.Errorf("slot %d from %s to %s: %w", t.slot, shard.Master.Name, to.Name, err)
			}
			mended = append(mended, t.slot)
		}
	}
	if s, err = o.Status(ctx); err != nil {
		return mended, err
	}
	for _, shard := range s.Shards {
		for _, t := range shard.Master.moving {
			if err := o.client(shard.Master.Address).Do(ctx, "CLUSTER", "SETSLOT", t.slot, "STABLE").Err(); err != nil {
				return mended, fmt.Errorf("slot %d at %s: %w", t.slot, shard.Master.Name, err)
			}
			mended = append(mended, t.slot)
		}
	}
	return mended, nil
}

// byID finds a master.
func (s *Status) byID(id string) *NodeStatus {
	for i := range s.Shards {
		if s.Shards[i].Master.ID == id {
			return &s.Shards[i].Master
		}
	}
	return nil
}
