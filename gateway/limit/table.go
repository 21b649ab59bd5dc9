package limit

import (
	"hash/maphash"
	"sync"
	"time"
)

const (
	tableParts = 64
	// maxPerPart bounds the table at 128 Ki budgets, some 30 MB. Beyond it the
	// one of a few that was wanted longest ago goes: its state in Redis stays.
	maxPerPart = 2048
	sampled    = 8
	// idleAfter is when a budget that nobody wanted is forgotten here.
	idleAfter = int64(2 * time.Minute)

	// keyPrefix begins every key of the gateways in Redis; the access list
	// allows no other.
	keyPrefix = "fournines:gw:"
)

// table holds the budgets that this gateway has to do with.
type table struct {
	seed  maphash.Seed
	parts [tableParts]struct {
		mu sync.Mutex
		m  map[budget]*entry
	}
}

// budget names one: a limit and whom it counts.
type budget struct{ rule, tenant string }

func (t *table) init() {
	t.seed = maphash.MakeSeed()
	for i := range t.parts {
		t.parts[i].m = map[budget]*entry{}
	}
}

func (t *table) get(r *rule, tenant string) *entry {
	k := budget{r.Name, tenant}
	p := &t.parts[maphash.Comparable(t.seed, k)%tableParts]
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.m[k]; e != nil {
		return e
	}
	if len(p.m) >= maxPerPart {
		var oldest budget
		var seen int64
		n := 0
		for name, e := range p.m { // begins anywhere
			e.mu.Lock()
			if n == 0 || e.seen < seen {
				oldest, seen = name, e.seen
			}
			e.mu.Unlock()
			if n++; n == sampled {
				break
			}
		}
		delete(p.m, oldest)
	}
	// The hash tag is the tenant, not the limit: tenants spread over the
	// cluster, and all limits of one are asked in one call.
	e := &entry{tag: tenant, key: keyPrefix + "{" + tenant + "}:" + r.Name}
	p.m[k] = e
	return e
}

func (t *table) each(f func(rule string, e *entry)) {
	for i := range t.parts {
		p := &t.parts[i]
		p.mu.Lock()
		list := make(map[budget]*entry, len(p.m))
		for k, e := range p.m {
			list[k] = e
		}
		p.mu.Unlock()
		for k, e := range list {
			f(k.rule, e)
		}
	}
}

// sweep forgets what nobody has wanted for a while. Without Redis a budget that
// is not full again must be kept.
func (t *table) sweep(now int64, rules map[string]*rule) {
	for i := range t.parts {
		p := &t.parts[i]
		p.mu.Lock()
		for k, e := range p.m {
			e.mu.Lock()
			idle := now-e.seen > idleAfter && e.owed == owed{}
			if r := rules[k.rule]; idle && r != nil {
				e.refill(r, now)
				full := r.capacity
				if e.alone {
					full *= e.share
				}
				idle = e.left >= full-slack
			}
			e.mu.Unlock()
			if idle {
				delete(p.m, k)
			}
		}
		p.mu.Unlock()
	}
}

func (t *table) size() int {
	n := 0
	for i := range t.parts {
		t.parts[i].mu.Lock()
		n += len(t.parts[i].m)
		t.parts[i].mu.Unlock()
	}
	return n
}
