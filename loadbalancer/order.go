package loadbalancer

import (
	"cmp"
	"math/rand/v2"
	"slices"
)

// order is the order in which a caller's connection tries the backends, each
// once: healthy ones in its zone, healthy ones elsewhere, and at last those
// that seem to be down, since a check may be wrong. Within each class the one
// with the fewest connections comes first, and chance decides between equals.
func (s *snapshot) order(zone string) []*backend {
	type candidate struct {
		b      *backend
		class  int
		active int64
	}
	list := make([]candidate, 0, len(s.backends))
	for _, b := range s.backends {
		c := candidate{b: b, active: b.active.Load()}
		if !b.healthy() {
			c.class += 2
		}
		if zone == "" || b.Zone != zone {
			c.class++
		}
		list = append(list, c)
	}
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	slices.SortStableFunc(list, func(x, y candidate) int {
		return cmp.Or(cmp.Compare(x.class, y.class), cmp.Compare(x.active, y.active))
	})
	out := make([]*backend, len(list))
	for i, c := range list {
		out[i] = c.b
	}
	return out
}
