package redisproxy

import (
	"bytes"
	"context"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"fournines/internal/resp"
	"fournines/redisproxy/route"
	"fournines/redisproxy/upstream"
)

// replicas knows which replicas may answer reads.
type replicas struct {
	c      *cluster
	maxLag time.Duration
	zone   string
	zones  map[string]string // of a node's address, where the configuration names one
	// near holds the replicas to ask instead of a master, by its address.
	near atomic.Pointer[map[string][]string]
}

func newReplicas(c *cluster, cfg *Config) *replicas {
	r := &replicas{c: c, maxLag: cfg.Reads.MaxLag, zone: cfg.Zone, zones: make(map[string]string)}
	for _, n := range cfg.Nodes {
		r.zones[n.Address] = n.Zone
	}
	r.near.Store(&map[string][]string{})
	return r
}

// look asks every replica whether it follows its master closely.
func (r *replicas) look(ctx context.Context, m *route.Map) {
	near := make(map[string][]string)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for master, all := range m.Replicas {
		for _, addr := range r.candidates(master, all) {
			wg.Go(func() {
				v, err := r.c.question(ctx, addr, "INFO", "replication")
				if err == nil && follows(string(v.Str), r.maxLag) {
					mu.Lock()
					near[master] = append(near[master], addr)
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	r.near.Store(&near)
}

// candidates are the nearest replicas: those of the proxy's zone; all of them
// where neither they nor the master are in it; none where the master is.
func (r *replicas) candidates(master string, all []string) []string {
	if r.zone == "" {
		return all
	}
	if r.zones[master] == r.zone {
		return nil
	}
	var here []string
	for _, a := range all {
		if r.zones[a] == r.zone {
			here = append(here, a)
		}
	}
	if here == nil {
		return all
	}
	return here
}

// follows reads a replica's INFO replication.
func follows(info string, maxLag time.Duration) bool {
	up, heard := false, false
	for line := range strings.SplitSeq(info, "\r\n") {
		switch key, value, _ := strings.Cut(line, ":"); key {
		case "master_link_status":
			up = value == "up"
		case "master_last_io_seconds_ago":
			n, err := strconv.Atoi(value)
			heard = err == nil && n >= 0 && time.Duration(n)*time.Second <= maxLag
		}
	}
	return up && heard
}

// unclearMiss are reads of one key whose answer does not tell that the key is
// not there.
var unclearMiss = map[string]bool{"smismember": true, "bitfield_ro": true}

// sendToReplica queues a read of one key at a replica; false means that it
// belongs to the master.
func (s *session) sendToReplica(o *op) bool {
	r := s.p.cluster.replicas
	if r == nil || o.info.Flags&route.ReadOnly == 0 || len(o.keys) != 1 || unclearMiss[o.info.Name] {
		return false
	}
	if time.Since(s.wrote) < s.p.cfg.Reads.AfterWrite {
		return false
	}
	near := (*r.near.Load())[s.p.cluster.slots.Load().Owner(o.slot)]
	if len(near) == 0 {
		return false
	}
	o.kind, o.replica = opRemote, true
	o.addr = near[s.id%uint64(len(near))]
	s.queueAt(o.addr, s.version|upstream.Replica, &o.req, &o.payload)
	return true
}

// checkReplica asks the master what a replica could not answer or does not
// have: it may be behind, and of a slot that is being moved its copy of keys
// that have gone already is gone too.
func (s *session) checkReplica(o *op) {
	o.replica = false
	if o.req.Err == nil && !isMiss(o.req.Reply) {
		s.p.m.replicas.WithLabelValues("replica").Inc()
		return
	}
	s.p.m.replicas.WithLabelValues("master").Inc()
	if o.addr = s.p.cluster.slots.Load().Owner(o.slot); o.addr == "" {
		o.req.Err = upstream.ErrNotSent
		return
	}
	s.ask(o.addr, &o.req, &o.payload)
}

// isMiss tells whether a raw reply may be one about a key that is not there.
func isMiss(raw []byte) bool {
	if len(raw) == 0 {
		return true
	}
	switch raw[0] {
	case resp.Error, resp.Null:
		return true
	case resp.Integer:
		return bytes.Equal(raw, []byte(":0\r\n")) || raw[1] == '-'
	case resp.SimpleString:
		return bytes.Equal(raw, []byte("+none\r\n"))
	case resp.Bulk:
		return raw[1] == '-' || raw[1] == '0'
	}
	if raw[1] == '-' || raw[1] == '0' {
		return true
	}
	for _, null := range []string{"\n$-1\r\n", "\n*-1\r\n", "\n_\r\n"} {
		if bytes.Contains(raw, []byte(null)) {
			return true
		}
	}
	return false
}
