package kubernetes

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"fournines/kubernetes/operator"
	"fournines/spec"
	"fournines/topology"
)

const (
	appRedis          = "dify-redis"
	redisPort         = 6379
	redisExporterPort = 9121
	redisImage        = "quay.io/opstree/redis:v7.0.15"
	redisExporter     = "quay.io/opstree/redis-exporter:v1.44.0"
)

// redisRoles are the names of the operator's StatefulSets, Services and pods'
// label app.
func redisRoles() []string { return []string{appRedis + "-leader", appRedis + "-follower"} }

// redisLayer is a Redis Cluster with a leader in each zone, or nothing when the
// cluster is somebody else's.
func (b *builder) redisLayer() ([]File, error) {
	if b.k.Redis.Provider == spec.ProviderExternal {
		return nil, nil
	}
	r := b.spec.Redis
	config := b.configMap(appRedis, map[string]string{"redis-additional.conf": redisConfig(r)})
	// The log is rewritten from a copy of the process.
	memory := quantity((int64(r.MaxMemory)*2 + 128<<20) >> 20 << 20)
	claim := func(size int64) operator.VolumeClaim {
		return operator.VolumeClaim{Spec: operator.VolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: b.k.StorageClass,
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(size, resource.BinarySI)}},
		}}
	}
	role := func(app string, replicas int) operator.RedisRole {
		spread := b.spread(map[string]string{"app": app})
		spread.MatchLabelKeys = nil // a StatefulSet's pods have no template hash
		return operator.RedisRole{
			Replicas: replicas, PDB: operator.RedisPDB{Enabled: true, MaxUnavailable: 1},
			TopologySpreadConstraints: []corev1.TopologySpreadConstraint{spread},
		}
	}
	c := operator.NewRedisCluster(b.meta(appRedis, appRedis))
	c.Spec = operator.RedisClusterSpec{
		ClusterSize: r.Masters, ClusterVersion: "v7", PersistenceEnabled: true, PriorityClassName: b.priority(priorityData),
		PodSecurityContext: user(1000),
		KubernetesConfig: operator.RedisKubernetesConfig{
			Image: redisImage, ImagePullPolicy: corev1.PullIfNotPresent,
			RedisSecret:    operator.KeyReference{Name: secretRedisCluster, Key: keyPassword},
			Resources:      resources("500m", memory, "", memory),
			UpdateStrategy: operator.RedisUpdateStrategy{Type: "RollingUpdate"},
		},
		RedisConfig:   operator.RedisConfig{AdditionalRedisConfig: config.Name, MaxMemoryPercentOfLimit: 50},
		RedisLeader:   role(redisRoles()[0], r.Masters),
		RedisFollower: role(redisRoles()[1], r.Masters*r.ReplicasPerMaster),
		RedisExporter: operator.RedisExporter{Enabled: true, Image: redisExporter, Port: redisExporterPort},
		Storage: operator.RedisStorage{
			VolumeClaimTemplate: claim(int64(b.k.Redis.Storage)), NodeConfVolume: true, NodeConfVolumeClaimTemplate: claim(1 << 30),
		},
	}
	return []File{{"cluster.yaml", []Object{config, c}}}, nil
}

// redisConfig is what every node reads after the operator's own settings.
func redisConfig(r spec.Redis) string {
	appendOnly, sync := "yes", string(r.AppendOnly)
	if r.AppendOnly == spec.AppendOff {
		appendOnly, sync = "no", "no"
	}
	lines := []string{
		"maxmemory " + strconv.FormatInt(int64(r.MaxMemory), 10),
		// An evicted key may be a queued task.
		"maxmemory-policy noeviction",
		"appendonly " + appendOnly,
		"appendfsync " + sync,
		"cluster-node-timeout " + strconv.FormatInt(int64(r.NodeTimeout.Std()/time.Millisecond), 10),
		"cluster-require-full-coverage no",
	}
	return strings.Join(lines, "\n") + "\n"
}

// redisNodes are the members of the cluster that are asked for the others.
func (b *builder) redisNodes() ([]topology.Endpoint, error) {
	var list []topology.Endpoint
	if b.k.Redis.Provider == spec.ProviderOperator {
		for _, role := range redisRoles() {
			list = append(list, topology.Endpoint{Name: role, Address: role + ":" + strconv.Itoa(redisPort)})
		}
		return list, nil
	}
	for i, n := range b.k.Redis.Nodes {
		_, e, err := topology.ParseEndpoint(n)
		if err != nil {
			return nil, fmt.Errorf("kubernetes.redis.nodes[%d]: %w", i, err)
		}
		list = append(list, e)
	}
	return slices.Clip(list), nil
}
