package operator

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Milvus is the Milvus of the operator 1.3.
type Milvus struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              MilvusSpec `json:"spec"`
}

// NewMilvus returns a Milvus without a spec.
func NewMilvus(meta metav1.ObjectMeta) *Milvus {
	return &Milvus{TypeMeta: kind("milvus.io/v1beta1", "Milvus"), ObjectMeta: meta}
}

// MilvusSpec is the wanted state of a Milvus. Config is milvus.yaml.
type MilvusSpec struct {
	Mode         string             `json:"mode"`
	Components   MilvusComponents   `json:"components"`
	Config       map[string]any     `json:"config"`
	Dependencies MilvusDependencies `json:"dependencies"`
}

// MilvusComponents are its processes; what stands beside them is for all.
type MilvusComponents struct {
	Image                     string                            `json:"image"`
	ImageUpdateMode           string                            `json:"imageUpdateMode"`
	EnableRollingUpdate       bool                              `json:"enableRollingUpdate"`
	RunAsNonRoot              bool                              `json:"runAsNonRoot"`
	PriorityClassName         string                            `json:"priorityClassName,omitempty"`
	Env                       []corev1.EnvVar                   `json:"env"`
	Resources                 corev1.ResourceRequirements       `json:"resources"`
	TopologySpreadConstraints []corev1.TopologySpreadConstraint `json:"topologySpreadConstraints"`
	Proxy                     MilvusComponent                   `json:"proxy"`
	MixCoord                  MilvusComponent                   `json:"mixCoord"`
	QueryNode                 MilvusComponent                   `json:"queryNode"`
	DataNode                  MilvusComponent                   `json:"dataNode"`
	StreamingNode             MilvusComponent                   `json:"streamingNode"`
}

// MilvusComponent is one kind of process.
type MilvusComponent struct {
	Replicas int `json:"replicas"`
}

// MilvusDependencies are what Milvus keeps its state in.
type MilvusDependencies struct {
	MsgStreamType string        `json:"msgStreamType"`
	Etcd          MilvusEtcd    `json:"etcd"`
	Storage       MilvusStorage `json:"storage"`
}

// MilvusEtcd is an etcd that the operator installs.
type MilvusEtcd struct {
	InCluster MilvusInCluster `json:"inCluster"`
}

// MilvusInCluster are values of the chart, and whether its volumes go when the
// Milvus object goes.
type MilvusInCluster struct {
	DeletionPolicy string         `json:"deletionPolicy"`
	PVCDeletion    bool           `json:"pvcDeletion"`
	Values         map[string]any `json:"values"`
}

// MilvusStorage is the object storage. SecretRef has the keys accesskey and
// secretkey.
type MilvusStorage struct {
	External  bool   `json:"external"`
	Type      string `json:"type"`
	Endpoint  string `json:"endpoint"`
	SecretRef string `json:"secretRef"`
}
