package operator

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// RedisCluster is the RedisCluster of OpsTree's operator 0.26.
type RedisCluster struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              RedisClusterSpec `json:"spec"`
}

// NewRedisCluster returns a RedisCluster without a spec.
func NewRedisCluster(meta metav1.ObjectMeta) *RedisCluster {
	return &RedisCluster{TypeMeta: kind("redis.redis.opstreelabs.in/v1beta2", "RedisCluster"), ObjectMeta: meta}
}

// RedisClusterSpec is the wanted state of a cluster. ClusterSize is the number of
// leaders.
type RedisClusterSpec struct {
	ClusterSize        int                        `json:"clusterSize"`
	ClusterVersion     string                     `json:"clusterVersion"`
	PersistenceEnabled bool                       `json:"persistenceEnabled"`
	PriorityClassName  string                     `json:"priorityClassName,omitempty"`
	PodSecurityContext *corev1.PodSecurityContext `json:"podSecurityContext,omitempty"`
	KubernetesConfig   RedisKubernetesConfig      `json:"kubernetesConfig"`
	RedisConfig        RedisConfig                `json:"redisConfig"`
	RedisLeader        RedisRole                  `json:"redisLeader"`
	RedisFollower      RedisRole                  `json:"redisFollower"`
	RedisExporter      RedisExporter              `json:"redisExporter"`
	Storage            RedisStorage               `json:"storage"`
}

// RedisKubernetesConfig is what all pods have in common.
type RedisKubernetesConfig struct {
	Image           string                      `json:"image"`
	ImagePullPolicy corev1.PullPolicy           `json:"imagePullPolicy"`
	RedisSecret     KeyReference                `json:"redisSecret"`
	Resources       corev1.ResourceRequirements `json:"resources"`
	UpdateStrategy  RedisUpdateStrategy         `json:"updateStrategy"`
}

// RedisUpdateStrategy is that of the operator's StatefulSets.
type RedisUpdateStrategy struct {
	Type string `json:"type"`
}

// RedisConfig names a ConfigMap whose key redis-additional.conf is read last.
type RedisConfig struct {
	AdditionalRedisConfig   string `json:"additionalRedisConfig"`
	MaxMemoryPercentOfLimit int    `json:"maxMemoryPercentOfLimit"`
}

// RedisRole is what is said of the leaders or of the followers.
type RedisRole struct {
	Replicas                  int                               `json:"replicas"`
	PDB                       RedisPDB                          `json:"pdb"`
	TopologySpreadConstraints []corev1.TopologySpreadConstraint `json:"topologySpreadConstraints"`
}

// RedisPDB is the disruption budget of a role.
type RedisPDB struct {
	Enabled        bool `json:"enabled"`
	MaxUnavailable int  `json:"maxUnavailable"`
}

// RedisExporter runs an exporter beside each node.
type RedisExporter struct {
	Enabled bool   `json:"enabled"`
	Image   string `json:"image"`
	Port    int    `json:"port"`
}

// RedisStorage are the volumes for data and for nodes.conf.
type RedisStorage struct {
	VolumeClaimTemplate         VolumeClaim `json:"volumeClaimTemplate"`
	NodeConfVolume              bool        `json:"nodeConfVolume"`
	NodeConfVolumeClaimTemplate VolumeClaim `json:"nodeConfVolumeClaimTemplate"`
}

// VolumeClaim is a template of a claim.
type VolumeClaim struct {
	Spec VolumeClaimSpec `json:"spec"`
}

// VolumeClaimSpec asks for a volume.
type VolumeClaimSpec struct {
	AccessModes      []corev1.PersistentVolumeAccessMode `json:"accessModes"`
	StorageClassName string                              `json:"storageClassName,omitempty"`
	Resources        corev1.VolumeResourceRequirements   `json:"resources"`
}
