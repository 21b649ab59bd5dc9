package rules

import "time"

var redisAlerts = []Alert{
	{
		// 1 is ok, 0 is fail; without an answer from a node RedisInstanceDown speaks.
		// A failover is over before it fires.
		Name: "RedisClusterState", Severity: Critical, For: 15 * time.Second,
		Expr:        `redis_cluster_state{job="redis"} == 0`,
		Summary:     `{{ $labels.component }} says that the Redis Cluster is down.`,
		Description: `{{ $labels.component }} in zone {{ $labels.zone }} has reported the state "fail" for 15 seconds: it sees no majority of masters, or slots without one.`,
	},
	{
		Name: "RedisSlotsUncovered", Severity: Critical, For: 15 * time.Second,
		Expr:        `min(redis_cluster_slots_ok{job="redis"}) < 16384`,
		Summary:     `Part of the Redis keys has no master.`,
		Description: `Only {{ $value }} of 16384 slots are served. The cluster's state may still say ok.`,
	},
	{
		Name: "RedisSlotsSuspect", Severity: Warning, For: 15 * time.Second,
		Expr:        `max(redis_cluster_slots_pfail{job="redis"}) > 0`,
		Summary:     `A Redis master is suspected to be gone, and nobody has taken over.`,
		Description: `{{ $value }} slots belong to a master that some node cannot reach, for 15 seconds by now.`,
	},
	{
		Name: "RedisInstanceDown", Severity: Warning, For: 10 * time.Second,
		Expr:        `redis_up{job="redis"} == 0`,
		Summary:     `Redis node {{ $labels.component }} in zone {{ $labels.zone }} does not answer.`,
		Description: `{{ $labels.component }} at {{ $labels.instance }} has not answered for 10 seconds.`,
	},
	{
		Name: "RedisReplicaLinkDown", Severity: Warning, For: 30 * time.Second,
		Expr:        `redis_master_link_up{job="redis"} == 0`,
		Summary:     `Replica {{ $labels.component }} has lost its master.`,
		Description: `{{ $labels.component }} in zone {{ $labels.zone }} has received nothing from its master for 30 seconds; what is written meanwhile has one copy less.`,
	},
	{
		Name: "RedisMasterWithoutReplica", Severity: Warning, For: time.Minute,
		Expr:        `redis_connected_slaves{job="redis"} < 1 and on (instance) redis_instance_info{job="redis", role="master"}`,
		Summary:     `Redis master {{ $labels.component }} has no replica.`,
		Description: `{{ $labels.component }} in zone {{ $labels.zone }} has had {{ $value }} replicas for a minute: if it dies, its keys are gone.`,
	},
	{
		Name: "RedisMemoryHigh", Severity: Warning, For: time.Minute,
		Expr:        `redis_memory_used_bytes{job="redis"} / (redis_memory_max_bytes{job="redis"} > 0) > 0.9`,
		Summary:     `Redis node {{ $labels.component }} uses {{ $value | humanizePercentage }} of its memory.`,
		Description: `{{ $labels.component }} uses {{ $value | humanizePercentage }} of maxmemory. Above it Redis refuses writes, and queues with them.`,
	},
	{
		Name: "RedisCommandsHeld", Severity: Critical, For: 15 * time.Second,
		Expr:        `sum(fournines_redisproxy_held_commands) > 0`,
		Summary:     `{{ $value }} Redis commands wait for a master.`,
		Description: `redisproxy has held {{ $value }} commands for 15 seconds, longer than a failover takes.`,
	},
}
