package route

import (
	"fmt"
	"net"
	"sort"
	"strconv"
	"strings"

	"fournines/redisproxy/keyspace"
)

// Node is a member of the cluster.
type Node struct {
	// ID is the 40-digit name that the cluster gave it.
	ID string
	// Addr is host:port.
	Addr string
	// Master tells the role; MasterID names the master of a replica.
	Master   bool
	MasterID string
	// Failed is set when the cluster has agreed that the node is down.
	Failed bool

	epoch  int64
	ranges [][2]int
}

// Map is who serves which slot. It is immutable.
type Map struct {
	// Nodes are all members.
	Nodes []Node
	// Masters are the addresses of the masters that serve slots, in the order
	// of their lowest slot.
	Masters []string
	// First holds each master's lowest slot.
	First []int
	// Missing counts the slots that nobody serves.
	Missing int
	// Replicas holds the living replicas of each master, by the master's address.
	Replicas map[string][]string

	owner [keyspace.Slots]int16 // index into Masters, or -1
}

// Owner returns the address of the master of slot; empty when there is none.
func (m *Map) Owner(slot int) string {
	if m == nil || slot < 0 || slot >= keyspace.Slots {
		return ""
	}
	if i := m.owner[slot]; i >= 0 {
		return m.Masters[i]
	}
	return ""
}

// Equal tells whether both maps route alike.
func (m *Map) Equal(o *Map) bool {
	if m == nil || o == nil {
		return m == o
	}
	if len(m.Masters) != len(o.Masters) || m.owner != o.owner {
		return false
	}
	for i := range m.Masters {
		if m.Masters[i] != o.Masters[i] {
			return false
		}
	}
	return true
}

// WithOwner returns a copy in which addr serves slot: what a MOVED answer
// taught, before the next full view confirms it.
func (m *Map) WithOwner(slot int, addr string) *Map {
	n := *m
	n.Masters = append([]string(nil), m.Masters...)
	n.First = append([]int(nil), m.First...)
	for i, a := range n.Masters {
		if a == addr {
			n.owner[slot] = int16(i)
			return &n
		}
	}
	if n.owner[slot] < 0 {
		n.Missing--
	}
	n.owner[slot] = int16(len(n.Masters))
	n.Masters = append(n.Masters, addr)
	n.First = append(n.First, slot)
	return &n
}

// ParseNodes reads the answer to CLUSTER NODES of the node at asked.
func ParseNodes(text, asked string) ([]Node, error) {
	var nodes []Node
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		f := strings.Fields(line)
		if len(f) < 8 {
			return nil, fmt.Errorf("malformed line of CLUSTER NODES: %q", line)
		}
		flags := "," + f[2] + ","
		if strings.Contains(flags, ",noaddr,") || strings.Contains(flags, ",handshake,") {
			continue
		}
		addr := f[1]
		if i := strings.IndexAny(addr, "@,"); i >= 0 {
			addr = addr[:i]
		}
		colon := strings.LastIndexByte(addr, ':')
		if colon < 0 {
			return nil, fmt.Errorf("malformed address in CLUSTER NODES: %q", line)
		}
		host, port := addr[:colon], addr[colon+1:]
		if host == "" || host == "?" {
			// A node that has met nobody does not know its own address.
			host, _, _ = net.SplitHostPort(asked)
		}
		epoch, err := strconv.ParseInt(f[6], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("malformed epoch in CLUSTER NODES: %q", line)
		}
		n := Node{
			ID: f[0], Addr: net.JoinHostPort(host, port), Master: strings.Contains(flags, "master,"),
			Failed: strings.Contains(flags, ",fail,"), epoch: epoch,
		}
		if f[3] != "-" {
			n.MasterID = f[3]
		}
		for _, r := range f[8:] {
			if r[0] == '[' {
				continue // a migration: ASK answers tell
			}
			lo, hi, isRange := strings.Cut(r, "-")
			a, err := strconv.Atoi(lo)
			b := a
			if err == nil && isRange {
				b, err = strconv.Atoi(hi)
			}
			if err != nil || a < 0 || b >= keyspace.Slots || a > b {
				return nil, fmt.Errorf("malformed slots in CLUSTER NODES: %q", line)
			}
			n.ranges = append(n.ranges, [2]int{a, b})
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

// Merge joins the views of several nodes. Views differ during a failover or a
// reshard; as inside the cluster, the claim with the highest configuration
// epoch wins a slot.
func Merge(views ...[]Node) *Map {
	m := &Map{}
	best := make(map[string]Node)
	var claim [keyspace.Slots]int64
	var owner [keyspace.Slots]string
	for _, view := range views {
		for _, n := range view {
			if old, ok := best[n.ID]; !ok || n.epoch > old.epoch || n.epoch == old.epoch && n.Failed && !old.Failed {
				best[n.ID] = n
			}
			if !n.Master {
				continue
			}
			for _, r := range n.ranges {
				for s := r[0]; s <= r[1]; s++ {
					if owner[s] == "" || n.epoch > claim[s] {
						owner[s], claim[s] = n.Addr, n.epoch
					}
				}
			}
		}
	}
	for _, n := range best {
		m.Nodes = append(m.Nodes, n)
	}
	sort.Slice(m.Nodes, func(i, j int) bool { return m.Nodes[i].Addr < m.Nodes[j].Addr })
	m.Replicas = make(map[string][]string)
	for _, n := range m.Nodes {
		if master, ok := best[n.MasterID]; ok && !n.Master && !n.Failed {
			m.Replicas[master.Addr] = append(m.Replicas[master.Addr], n.Addr)
		}
	}
	index := make(map[string]int16)
	for s, addr := range owner {
		if addr == "" {
			m.owner[s] = -1
			m.Missing++
			continue
		}
		i, ok := index[addr]
		if !ok {
			i = int16(len(m.Masters))
			index[addr] = i
			m.Masters = append(m.Masters, addr)
			m.First = append(m.First, s)
		}
		m.owner[s] = i
	}
	return m
}
