package rediscluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Shard is where one shard runs at this moment.
type Shard struct {
	// Master is the node that has the slots.
	Master Node
	// Replicas are the shard's other nodes.
	Replicas []Node
	// Slots is how many slots the master has.
	Slots int
}

// Placement asks the cluster where masters and replicas run, and returns an
// error that names every arrangement in which losing one zone loses a shard or
// the majority of masters.
func Placement(ctx context.Context, cfg FormConfig) ([]Shard, error) {
	s, err := open(cfg)
	if err != nil {
		return nil, err
	}
	defer s.close()
	var view []line
	var errs []error
	for _, m := range s.nodes {
		if err := m.look(ctx); err != nil {
			errs = append(errs, err)
			continue
		}
		view = m.view
		break
	}
	if view == nil {
		return nil, fmt.Errorf("no node tells where the shards run: %w", errors.Join(errs...))
	}
	byAddress := make(map[string]Node, len(cfg.Nodes))
	for _, n := range cfg.Nodes {
		byAddress[n.Address()] = n
	}
	var shards []Shard
	for _, l := range view {
		if !l.isMaster || len(l.slots) == 0 || l.failed {
			continue
		}
		shard := Shard{Master: byAddress[l.address]}
		for _, r := range l.slots {
			shard.Slots += r[1] - r[0] + 1
		}
		for _, other := range view {
			if other.master == l.id && !other.failed {
				shard.Replicas = append(shard.Replicas, byAddress[other.address])
			}
		}
		shards = append(shards, shard)
	}
	slices.SortFunc(shards, func(a, b Shard) int { return a.Master.Shard - b.Master.Shard })
	return shards, checkPlacement(shards)
}

func checkPlacement(shards []Shard) error {
	var errs []error
	masters := make(map[string][]string) // zone to names
	total := 0
	for _, s := range shards {
		total += s.Slots
		masters[s.Master.Zone] = append(masters[s.Master.Zone], s.Master.Name)
		if len(s.Replicas) == 0 {
			errs = append(errs, fmt.Errorf("%s has no replica", s.Master.Name))
		} else if !slices.ContainsFunc(s.Replicas, func(r Node) bool { return r.Zone != s.Master.Zone }) {
			errs = append(errs, fmt.Errorf("%s has no replica outside zone %s", s.Master.Name, s.Master.Zone))
		}
	}
	if total != slotCount {
		errs = append(errs, fmt.Errorf("%d of %d slots have a master", total, slotCount))
	}
	for zone, names := range masters {
		if 2*len(names) >= len(shards) {
			errs = append(errs, fmt.Errorf("zone %s has %d of %d masters (%s): without it there is no majority",
				zone, len(names), len(shards), strings.Join(names, ", ")))
		}
	}
	return errors.Join(errs...)
}
