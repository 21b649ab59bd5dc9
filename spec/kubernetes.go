package spec

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"fournines/internal/strictyaml"
)

// Provider says who runs a layer of an installation on Kubernetes.
type Provider string

// The providers of a layer.
const (
	// ProviderOperator has an operator of the cluster run it, from an object that
	// is rendered.
	ProviderOperator Provider = "operator"
	// ProviderExternal uses what runs already: a managed service, or a server of
	// the cluster that somebody else looks after.
	ProviderExternal Provider = "external"
	// ProviderNone leaves the layer out.
	ProviderNone Provider = "none"
	// ProviderHigress is Higress, the edge.
	ProviderHigress Provider = "higress"
)

// Kubernetes configures what `fournines render kubernetes` writes. Nothing else
// reads it.
type Kubernetes struct {
	// Namespace that everything is in.
	Namespace string `yaml:"namespace" pattern:"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$" wants:"at most 40 lower-case letters, digits and dashes, starting with a letter"`
	// Image of fournines for the proxies, with a tag or a digest. Needed.
	Image string `yaml:"image"`
	// Host is the name under which users reach Dify, like dify.example.com.
	// Needed.
	Host string `yaml:"host"`
	// ProxiesPerZone is how many gateways, pgproxies and redisproxies run in each
	// full zone. The pgproxies of a zone share postgres.proxy.poolSize.
	ProxiesPerZone int `yaml:"proxiesPerZone" range:"1..10"`
	// StorageClass of all volumes; empty is the cluster's default. Volumes must
	// bind when their pod is scheduled (WaitForFirstConsumer).
	StorageClass string `yaml:"storageClass"`
	// Operators are the namespaces of the operators, KEDA and Prometheus
	// included. The network policies let them in.
	Operators []string `yaml:"operators" range:"0..50"`
	// Secrets is where passwords come from.
	Secrets KubernetesSecrets `yaml:"secrets"`
	// Dify is the application.
	Dify KubernetesDify `yaml:"dify"`
	// Postgres is the database.
	Postgres KubernetesPostgres `yaml:"postgres"`
	// Redis is the Redis Cluster.
	Redis KubernetesRedis `yaml:"redis"`
	// Vectors is the vector database.
	Vectors KubernetesVectors `yaml:"vectors"`
	// ObjectStorage is the S3 service for uploads, keys of workspaces, backups
	// and, when Milvus is run by its operator, vectors.
	ObjectStorage KubernetesObjectStorage `yaml:"objectStorage"`
	// Edge is what stands in front of the gateways.
	Edge KubernetesEdge `yaml:"edge"`
	// Observability is who scrapes and alerts.
	Observability KubernetesObservability `yaml:"observability"`
}

// KubernetesSecrets says where passwords come from.
type KubernetesSecrets struct {
	// Store is the name of a ClusterSecretStore of External Secrets that holds
	// them. Empty means Secrets that exist, which
	// `fournines render kubernetes --secrets` makes once.
	Store string `yaml:"store"`
	// Prefix of their keys in the store; the name of the Secret follows a slash.
	Prefix string `yaml:"prefix"`
}

// KubernetesDify configures Dify's workloads.
type KubernetesDify struct {
	// Images replace those that belong to dify.version, for a registry of your
	// own or a digest: the keys are api, web, sandbox, pluginDaemon and squid.
	Images map[string]string `yaml:"images"`
	// Workers is the smallest number of Celery workers of each group, KEDA adds
	// more by the length of their queues.
	Workers int `yaml:"workers" range:"2..1000"`
	// MaxWorkers is the largest number. More than workers.
	MaxWorkers int `yaml:"maxWorkers" range:"3..1000"`
	// TasksPerWorker is the length of a queue, in tasks for each worker, that
	// KEDA aims at.
	TasksPerWorker int `yaml:"tasksPerWorker" range:"1..10000"`
	// Env is a map of further variables for api and workers; it overrides what is
	// rendered. Not for secrets.
	Env map[string]string `yaml:"env"`
}

// KubernetesPostgres says who runs PostgreSQL.
type KubernetesPostgres struct {
	// Provider is operator for CloudNativePG, external for a database that runs
	// already, such as RDS.
	Provider Provider `yaml:"provider" enum:"operator,external"`
	// Servers of an external database, host:port or host:port@zone: every server,
	// primary and standbys. pgproxy finds the primary among them.
	Servers []string `yaml:"servers" range:"0..20"`
	// TLS towards external servers: disable, require, verify-ca or verify-full. The
	// last two need caSecret.
	TLS string `yaml:"tls" enum:"disable,require,verify-ca,verify-full"`
	// CASecret is a Secret with the certificate authority of external servers in
	// its key ca.crt.
	CASecret string `yaml:"caSecret"`
	// Image of PostgreSQL for the operator; empty means CloudNativePG's own of
	// postgres.version.
	Image string `yaml:"image"`
	// Storage is the size of each server's volume.
	Storage Bytes `yaml:"storage" range:"1GiB..64TiB"`
	// WALStorage is the size of each server's volume for WAL.
	WALStorage Bytes `yaml:"walStorage" range:"1GiB..64TiB"`
}

// KubernetesRedis says who runs the Redis Cluster.
type KubernetesRedis struct {
	// Provider is operator for the operator of OpsTree, external for a cluster
	// that runs already, such as ElastiCache in cluster mode.
	Provider Provider `yaml:"provider" enum:"operator,external"`
	// Nodes of an external cluster, host:port or host:port@zone; some of them are
	// enough.
	Nodes []string `yaml:"nodes" range:"0..50"`
	// TLS encrypts connections to an external cluster.
	TLS bool `yaml:"tls"`
	// Storage is the size of each node's volume.
	Storage Bytes `yaml:"storage" range:"1GiB..16TiB"`
}

// KubernetesVectors says who runs the vector database.
type KubernetesVectors struct {
	// Provider is operator for the operator of Milvus, external for a Milvus that
	// runs already, such as Zilliz Cloud.
	Provider Provider `yaml:"provider" enum:"operator,external"`
	// URI of an external Milvus, like https://milvus.example.com:19530.
	URI string `yaml:"uri"`
	// QueryNodes is how many nodes answer searches.
	QueryNodes int `yaml:"queryNodes" range:"2..100"`
}

// KubernetesObjectStorage is a service that speaks S3.
type KubernetesObjectStorage struct {
	// Endpoint is its URL, like https://s3.eu-central-1.amazonaws.com. Needed.
	Endpoint string `yaml:"endpoint"`
	// Region of the bucket.
	Region string `yaml:"region"`
	// Bucket for everything. Needed.
	Bucket string `yaml:"bucket"`
	// AddressStyle of the bucket: virtual (bucket.host) or path (host/bucket).
	AddressStyle string `yaml:"addressStyle" enum:"virtual,path"`
}

// KubernetesEdge is what stands in front of the gateways.
type KubernetesEdge struct {
	// Provider is higress for routes of Higress, none to bring your own entrance;
	// it then sends /console/api, /api, /v1, /files, /mcp and /triggers to the
	// Service gateway, /e/ to dify-plugin-daemon and the rest to dify-web.
	Provider Provider `yaml:"provider" enum:"higress,none"`
	// TLSSecret is the Secret with the certificate of host; empty means that TLS
	// ends before.
	TLSSecret string `yaml:"tlsSecret"`
}

// KubernetesObservability says who scrapes and alerts.
type KubernetesObservability struct {
	// Provider is operator for Prometheus Operator, none for a Prometheus of your
	// own; the rules are then in a ConfigMap, and pods have the usual annotations.
	Provider Provider `yaml:"provider" enum:"operator,none"`
	// Labels that your Prometheus selects monitors and rules by.
	Labels map[string]string `yaml:"labels"`
}

func defaultKubernetes() Kubernetes {
	return Kubernetes{
		Namespace:      "dify",
		ProxiesPerZone: 2,
		Operators:      []string{"cnpg-system", "redis-operator", "milvus-operator", "keda", "monitoring"},
		Secrets:        KubernetesSecrets{Prefix: "dify"},
		Dify:           KubernetesDify{Images: map[string]string{}, Workers: 3, MaxWorkers: 10, TasksPerWorker: 5, Env: map[string]string{}},
		Postgres:       KubernetesPostgres{Provider: ProviderOperator, Servers: []string{}, TLS: "require", Storage: 100 * gibibyte, WALStorage: 20 * gibibyte},
		Redis:          KubernetesRedis{Provider: ProviderOperator, Nodes: []string{}, Storage: 8 * gibibyte},
		Vectors:        KubernetesVectors{Provider: ProviderOperator, QueryNodes: 3},
		ObjectStorage:  KubernetesObjectStorage{AddressStyle: "virtual"},
		Edge:           KubernetesEdge{Provider: ProviderHigress},
		Observability:  KubernetesObservability{Provider: ProviderOperator, Labels: map[string]string{}},
	}
}

var (
	objectName  = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	hostName    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+$`)
	bucketName  = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	labelValue  = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$`)
	labelName   = regexp.MustCompile(`^([a-z0-9][a-z0-9.-]*/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$`)
	environment = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// DifyImages are the keys of kubernetes.dify.images.
func DifyImages() []string { return []string{"api", "web", "sandbox", "pluginDaemon", "squid"} }

// kubernetes checks what stands in the section. What only a rendering needs is
// checked by ForKubernetes.
func (c *checker) kubernetes() {
	k := &c.spec.Kubernetes
	for i, n := range k.Operators {
		if !objectName.MatchString(n) {
			c.add(fmt.Sprintf("kubernetes.operators[%d]", i), "", "%q is not the name of a namespace", n)
		}
	}
	c.image("kubernetes.image", k.Image)
	c.image("kubernetes.postgres.image", k.Postgres.Image)
	if k.Host != "" && !hostName.MatchString(k.Host) {
		c.add("kubernetes.host", "write it like dify.example.com, without https:// and port", "%q is not the name of a host", k.Host)
	}
	for _, n := range []struct{ path, name string }{
		{"kubernetes.secrets.store", k.Secrets.Store},
		{"kubernetes.postgres.caSecret", k.Postgres.CASecret},
		{"kubernetes.edge.tlsSecret", k.Edge.TLSSecret},
		{"kubernetes.storageClass", k.StorageClass},
	} {
		if n.name != "" && !objectName.MatchString(n.name) {
			c.add(n.path, "", "%q is not the name of an object", n.name)
		}
	}
	for name, image := range k.Dify.Images {
		at := "kubernetes.dify.images." + name
		if !slices.Contains(DifyImages(), name) {
			c.add(at, strictyaml.Suggest(name, DifyImages()), "there is no such image")
		}
		c.image(at, image)
	}
	if k.Dify.Workers >= k.Dify.MaxWorkers {
		c.add("kubernetes.dify.workers", "lower it, or raise maxWorkers", "%d is not less than maxWorkers, which is %d", k.Dify.Workers, k.Dify.MaxWorkers)
	}
	for name := range k.Dify.Env {
		if !environment.MatchString(name) {
			c.add("kubernetes.dify.env."+name, "", "not the name of an environment variable")
		}
	}
	for name, value := range k.Observability.Labels {
		if !labelName.MatchString(name) || !labelValue.MatchString(value) {
			c.add("kubernetes.observability.labels."+name, "", "%q: %q is not a label", name, value)
		}
	}
	c.servers("kubernetes.postgres.servers", k.Postgres.Servers)
	c.servers("kubernetes.redis.nodes", k.Redis.Nodes)
	c.kubernetesURLs()
	if b := k.ObjectStorage.Bucket; b != "" && !bucketName.MatchString(b) {
		c.add("kubernetes.objectStorage.bucket", "", "%q is not the name of a bucket", b)
	}
	labels := map[string]int{}
	for i, z := range c.spec.Zones {
		at := fmt.Sprintf("zones[%d].nodeLabel", i)
		label := z.Label()
		if z.NodeLabel != "" && !labelValue.MatchString(label) {
			c.add(at, "", "%q is not the value of a label", label)
		}
		if before, twice := labels[label]; twice && z.NodeLabel != "" {
			c.add(at, "", "%q is the label of zones[%d] already", label, before)
		}
		labels[label] = i
	}
}

// image checks that an image, when it is given, does not follow a moving tag.
func (c *checker) image(path, image string) {
	if image == "" {
		return
	}
	name, digest, pinned := strings.Cut(image, "@")
	last := name[strings.LastIndexByte(name, '/')+1:]
	_, tag, tagged := strings.Cut(last, ":")
	untagged := strings.TrimSuffix(name, ":"+tag)
	switch {
	case strings.ContainsAny(image, " \t\n\"'$") || last == "":
		c.add(path, "write it like registry.example.com/team/name:1.2.3", "%q is not an image", image)
	case pinned && !strings.HasPrefix(digest, "sha256:"):
		c.add(path, "", "%q is not a digest; it begins with sha256:", digest)
	case !pinned && (!tagged || tag == "" || tag == "latest"):
		c.add(path, "name a version, like "+untagged+":1.2.3, or a digest", "%q may be another program tomorrow", image)
	}
}

// servers checks addresses, host:port or host:port@zone.
func (c *checker) servers(path string, list []string) {
	seen := map[string]int{}
	for i, s := range list {
		at := fmt.Sprintf("%s[%d]", path, i)
		address, zone, zoned := strings.Cut(s, "@")
		host, port, ok := strings.Cut(address, ":")
		if number, isNumber := parsePort(port); !ok || !isNumber || number == 0 || host == "" || strings.ContainsAny(host, "/ ") {
			c.add(at, "write it like db-1.example.com:5432 or db-1.example.com:5432@a", "%q is not host:port", s)
			continue
		}
		if before, twice := seen[address]; twice {
			c.add(at, "", "%s is listed in %s[%d] already", address, path, before)
		}
		seen[address] = i
		if zoned {
			known := false
			for _, z := range c.spec.Zones {
				known = known || z.Name == zone
			}
			if !known {
				c.add(at, "", "%q is not the name of a zone", zone)
			}
		}
	}
}

func parsePort(s string) (int, bool) {
	a, err := netip.ParseAddrPort("127.0.0.1:" + s)
	return int(a.Port()), err == nil
}

// kubernetesURLs checks the URLs of the section. They are not repeated in
// messages: they may carry a password, which does not belong there.
func (c *checker) kubernetesURLs() {
	k := &c.spec.Kubernetes
	for _, u := range []struct{ path, value, example string }{
		{"kubernetes.vectors.uri", k.Vectors.URI, "https://milvus.example.com:19530"},
		{"kubernetes.objectStorage.endpoint", k.ObjectStorage.Endpoint, "https://s3.eu-central-1.amazonaws.com"},
	} {
		if u.value == "" {
			continue
		}
		parsed, err := url.Parse(u.value)
		switch {
		case err != nil || parsed.Scheme != "http" && parsed.Scheme != "https" || parsed.Hostname() == "":
			c.add(u.path, "write it like "+u.example, "not an http or https URL")
		case parsed.User != nil:
			c.add(u.path, "put it into the Secret instead", "the URL carries a password")
		case parsed.Path != "" && parsed.Path != "/" || parsed.RawQuery != "":
			c.add(u.path, "write it like "+u.example, "the URL has a path or a query")
		}
	}
}

// ForKubernetes reports what a rendering for Kubernetes needs and s does not
// say, each a strictyaml.Problem with its field. s is valid otherwise.
func (s *Spec) ForKubernetes() error {
	k := &s.Kubernetes
	var errs []error
	need := func(path, value, hint, why string) {
		if value == "" {
			errs = append(errs, strictyaml.Problem{Path: path, Message: "needed: " + why, Hint: hint})
		}
	}
	need("kubernetes.image", k.Image, "see docs/kubernetes.md for a Dockerfile", "the image of fournines that the proxies run")
	need("kubernetes.host", k.Host, "write it like dify.example.com", "the name that Dify writes into its links")
	need("kubernetes.objectStorage.endpoint", k.ObjectStorage.Endpoint, "any service that speaks S3", "uploads and the keys of the workspaces must not lie on the disk of one pod")
	need("kubernetes.objectStorage.bucket", k.ObjectStorage.Bucket, "", "uploads and the keys of the workspaces must not lie on the disk of one pod")
	if k.Postgres.Provider == ProviderExternal {
		need("kubernetes.postgres.servers", strings.Join(k.Postgres.Servers, ""), "list every server, host:port", "kubernetes.postgres.provider is external")
		if strings.HasPrefix(k.Postgres.TLS, "verify-") {
			need("kubernetes.postgres.caSecret", k.Postgres.CASecret, "or set tls to require", "kubernetes.postgres.tls is "+k.Postgres.TLS)
		}
	}
	if k.Redis.Provider == ProviderExternal {
		need("kubernetes.redis.nodes", strings.Join(k.Redis.Nodes, ""), "list some nodes of the cluster, host:port", "kubernetes.redis.provider is external")
	}
	if k.Vectors.Provider == ProviderExternal {
		need("kubernetes.vectors.uri", k.Vectors.URI, "", "kubernetes.vectors.provider is external")
	}
	return errors.Join(errs...)
}
