package route

import "sync"

const cacheShards = 8

// verdicts remembers verdicts by shape. When a shard is full the newer half of
// its content stays, and of the rest what is asked for again.
type verdicts struct {
	shards [cacheShards]*shard
}

type shard struct {
	mu sync.RWMutex
	// Generations: new verdicts go to recent; when it is full it becomes old.
	recent, old map[string]*verdict
	limit       int // of each
}

func newVerdicts(limit int) verdicts {
	var c verdicts
	for i := range c.shards {
		c.shards[i] = &shard{limit: max(1, limit/cacheShards/2), recent: make(map[string]*verdict)}
	}
	return c
}

func (c *verdicts) shard(n int, middle byte) *shard {
	return c.shards[(n+int(middle))%cacheShards]
}

// get returns the verdict on a shape, or nil when there is none of this version.
func (c *verdicts) get(key []byte, version uint64) *verdict {
	s := c.shard(len(key), key[len(key)/2])
	s.mu.RLock()
	v, recent := s.recent[string(key)]
	if !recent {
		v = s.old[string(key)]
	}
	s.mu.RUnlock()
	if v == nil || v.version != version {
		return nil
	}
	if !recent {
		s.put(string(key), v)
	}
	return v
}

func (c *verdicts) put(key string, v *verdict) {
	c.shard(len(key), key[len(key)/2]).put(key, v)
}

func (s *shard) put(key string, v *verdict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.recent[key]; !known && len(s.recent) >= s.limit {
		s.old, s.recent = s.recent, make(map[string]*verdict, s.limit)
	}
	s.recent[key] = v
}
