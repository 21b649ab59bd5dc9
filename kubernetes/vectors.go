package kubernetes

import (
	"net/url"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"fournines/kubernetes/operator"
	"fournines/spec"
)

const (
	appMilvus = "dify-milvus"
	// milvusService is what the operator calls the Service of the proxies.
	milvusService = appMilvus + "-milvus"
	milvusPort    = "19530"
	milvusImage   = "milvusdb/milvus:v2.6.0"
)

// vectorsLayer is a Milvus cluster, or nothing when it is somebody else's.
func (b *builder) vectorsLayer() ([]File, error) {
	if b.k.Vectors.Provider == spec.ProviderExternal {
		return nil, nil
	}
	storage := b.k.ObjectStorage
	endpoint, err := url.Parse(storage.Endpoint)
	if err != nil {
		return nil, err
	}
	host, secure := endpoint.Host, endpoint.Scheme == "https"
	if endpoint.Port() == "" {
		host += map[bool]string{true: ":443", false: ":80"}[secure]
	}
	spread := b.spread(map[string]string{labelInstance: appMilvus})
	// Of all components together, and no pod waits for it: each component alone is
	// too small to be spread by force.
	spread.WhenUnsatisfiable, spread.MatchLabelKeys = corev1.ScheduleAnyway, []string{"app.kubernetes.io/component"}
	standby := map[string]any{"enableActiveStandby": true}
	m := operator.NewMilvus(b.meta(appMilvus, appMilvus))
	m.Spec = operator.MilvusSpec{
		Mode: "cluster",
		Components: operator.MilvusComponents{
			Image: milvusImage, ImageUpdateMode: "rollingUpgrade", EnableRollingUpdate: true, RunAsNonRoot: true, PriorityClassName: b.priority(priorityData),
			Env:                       []corev1.EnvVar{secretEnv("COMMON_SECURITY_DEFAULTROOTPASSWORD", secretMilvus, keyPassword)},
			Resources:                 resources("500m", "2Gi", "", "4Gi"),
			TopologySpreadConstraints: []corev1.TopologySpreadConstraint{spread},
			Proxy:                     operator.MilvusComponent{Replicas: 2}, MixCoord: operator.MilvusComponent{Replicas: 2},
			QueryNode: operator.MilvusComponent{Replicas: b.k.Vectors.QueryNodes}, DataNode: operator.MilvusComponent{Replicas: 2},
			StreamingNode: operator.MilvusComponent{Replicas: 3},
		},
		Config: map[string]any{
			"common":    map[string]any{"security": map[string]any{"authorizationEnabled": true}},
			"rootCoord": standby, "dataCoord": standby, "queryCoord": standby, "mixCoord": standby,
			"minio": map[string]any{
				"bucketName": storage.Bucket, "rootPath": "milvus", "useSSL": secure, "region": storage.Region,
				"useVirtualHost": storage.AddressStyle == "virtual",
			},
		},
		Dependencies: operator.MilvusDependencies{
			MsgStreamType: "woodpecker",
			Etcd: operator.MilvusEtcd{InCluster: operator.MilvusInCluster{
				// The volumes outlive a mistake.
				DeletionPolicy: "Retain", PVCDeletion: false,
				Values: b.etcdValues(),
			}},
			Storage: operator.MilvusStorage{External: true, Type: "S3", Endpoint: host, SecretRef: secretStorage},
		},
	}
	return []File{{"milvus.yaml", []Object{m}}}, nil
}

// etcdValues are those of the chart that the operator installs: one member in
// each zone.
func (b *builder) etcdValues() map[string]any {
	members := map[string]any{labelInstance: appMilvus + "-etcd"}
	values := map[string]any{
		"replicaCount": 3,
		"topologySpreadConstraints": []any{map[string]any{
			"maxSkew": 1, "topologyKey": topologyZone, "whenUnsatisfiable": "DoNotSchedule", "nodeTaintsPolicy": "Honor",
			"labelSelector": map[string]any{"matchLabels": members},
		}},
		"pdb": map[string]any{"create": true, "minAvailable": 2},
	}
	if b.k.StorageClass != "" {
		values["persistence"] = map[string]any{"storageClass": b.k.StorageClass}
	}
	return values
}

// milvusURI is where Dify finds the vector database.
func (b *builder) milvusURI() string {
	if b.k.Vectors.Provider == spec.ProviderExternal {
		return strings.TrimSuffix(b.k.Vectors.URI, "/")
	}
	return "http://" + milvusService + ":" + milvusPort
}
