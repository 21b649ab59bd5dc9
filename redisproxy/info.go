package redisproxy

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"fournines/internal/resp"
	"fournines/redisproxy/keyspace"
)

// fallbackVersion is told before a node has told its own.
const fallbackVersion = "7.0.0"

func (p *Proxy) redisVersion() string {
	for _, a := range p.cluster.slots.Load().Masters {
		if v := p.pool.Node(a).ServerVersion(); v != "" {
			return v
		}
	}
	return fallbackVersion
}

// info answers as a standalone master would. What concerns one node only is
// left out.
func (s *session) info(o *op) {
	want := make(map[string]bool)
	for _, a := range o.cmd.Args[1:] {
		want[strings.ToLower(string(a))] = true
	}
	if len(want) == 0 || want["all"] || want["everything"] || want["default"] {
		for _, name := range []string{"server", "clients", "memory", "stats", "replication", "cluster", "keyspace"} {
			want[name] = true
		}
	}
	var b strings.Builder
	section := func(name string, lines ...string) {
		if !want[strings.ToLower(name)] {
			return
		}
		if b.Len() > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString("# " + name + "\r\n")
		for _, l := range lines {
			b.WriteString(l + "\r\n")
		}
	}
	up := time.Since(s.p.started)
	_, port, _ := strings.Cut(s.conn.LocalAddr().String(), "]:")
	if i := strings.LastIndexByte(s.conn.LocalAddr().String(), ':'); i >= 0 {
		port = s.conn.LocalAddr().String()[i+1:]
	}
	section("Server", "redis_version:"+s.p.redisVersion(), "redis_mode:standalone", "server_name:fournines-redisproxy",
		fmt.Sprintf("process_id:%d", os.Getpid()), "tcp_port:"+port,
		fmt.Sprintf("uptime_in_seconds:%d", int(up.Seconds())), fmt.Sprintf("uptime_in_days:%d", int(up.Hours()/24)))
	s.p.mu.Lock()
	clients := len(s.p.sessions)
	s.p.mu.Unlock()
	section("Clients", fmt.Sprintf("connected_clients:%d", clients), fmt.Sprintf("maxclients:%d", s.p.cfg.Limits.MaxClients))
	if want["memory"] {
		used, limit, policy := s.memory()
		section("Memory", fmt.Sprintf("used_memory:%d", used), fmt.Sprintf("maxmemory:%d", limit), "maxmemory_policy:"+policy)
	}
	if want["stats"] {
		section("Stats", fmt.Sprintf("pubsub_channels:%d", s.p.hub.topics(channels)), fmt.Sprintf("pubsub_patterns:%d", s.p.hub.topics(patterns)), fmt.Sprintf("pubsubshard_channels:%d", s.p.hub.topics(shardChannels)))
	}
	section("Replication", "role:master", "connected_slaves:0", "master_failover_state:no-failover")
	section("Cluster", "cluster_enabled:0")
	if want["keyspace"] {
		var lines []string
		for i := range keyspace.Databases {
			n, err := s.size(&s.p.dbs[i])
			if err != nil {
				break
			}
			if n > 0 {
				lines = append(lines, fmt.Sprintf("db%d:keys=%d,expires=0,avg_ttl=0", i, n))
			}
		}
		section("Keyspace", lines...)
	}
	o.local = resp.AppendBulkString(o.local, b.String())
}

// memory adds up what the masters use.
func (s *session) memory() (used, limit int64, policy string) {
	policy = "noeviction"
	for _, slot := range s.p.cluster.slots.Load().First {
		v, err := s.query(slot, words("INFO", "memory"), true)
		if err != nil {
			continue
		}
		for line := range strings.SplitSeq(string(v.Str), "\r\n") {
			k, val, _ := strings.Cut(line, ":")
			n, _ := strconv.ParseInt(val, 10, 64)
			switch k {
			case "used_memory":
				used += n
			case "maxmemory":
				limit += n
			case "maxmemory_policy":
				policy = val
			}
		}
	}
	return used, limit, policy
}

// config is CONFIG GET for what clients ask; dispatch refuses the rest.
func (s *session) config(o *op) {
	args := o.cmd.Args
	if o.info.Name != "config|get" {
		o.local = resp.AppendError(o.local, unknownSubcommand(args))
		return
	}
	_, limit, policy := int64(0), int64(0), "noeviction"
	for _, a := range args[2:] {
		if strings.Contains(strings.ToLower(string(a)), "maxmemory") || strings.ContainsAny(string(a), "*?[") {
			_, limit, policy = s.memory()
			break
		}
	}
	values := [][2]string{
		{"appendonly", "yes"}, {"cluster-enabled", "no"}, {"databases", strconv.Itoa(keyspace.Databases)},
		{"maxclients", strconv.Itoa(s.p.cfg.Limits.MaxClients)}, {"maxmemory", strconv.FormatInt(limit, 10)},
		{"maxmemory-policy", policy}, {"notify-keyspace-events", ""},
		{"proto-max-bulk-len", strconv.Itoa(s.p.cfg.Limits.MaxBulkBytes)}, {"save", ""}, {"timeout", "0"},
	}
	var out [][2]string
	for _, kv := range values {
		for _, a := range args[2:] {
			if keyspace.Match([]byte(strings.ToLower(string(a))), []byte(kv[0])) {
				out = append(out, kv)
				break
			}
		}
	}
	o.local = resp.AppendMap(o.local, len(out), s.version)
	for _, kv := range out {
		o.local = resp.AppendBulkString(o.local, kv[0])
		o.local = resp.AppendBulkString(o.local, kv[1])
	}
}

func (s *session) role(o *op) {
	o.local = resp.AppendArray(o.local, 3)
	o.local = resp.AppendBulkString(o.local, "master")
	o.local = resp.AppendInt(o.local, 0)
	o.local = resp.AppendArray(o.local, 0)
}
