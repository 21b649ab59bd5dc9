package spec

// VectorEngine is a vector database.
type VectorEngine string

// EngineMilvus is Milvus.
const EngineMilvus VectorEngine = "milvus"

// Metric says how the distance of two vectors is measured.
type Metric string

// The metrics, by their names in Milvus.
const (
	// MetricIP is the inner product.
	MetricIP Metric = "IP"
	// MetricL2 is the Euclidean distance.
	MetricL2 Metric = "L2"
	// MetricCosine is the cosine of the angle.
	MetricCosine Metric = "COSINE"
)

// Vectors configures the vector database.
type Vectors struct {
	// Engine is the vector database.
	Engine VectorEngine `yaml:"engine" enum:"milvus"`
	// Dimension of the embeddings. It belongs to the embedding model (768 for
	// BERT) and cannot change once documents are indexed.
	Dimension int `yaml:"dimension" range:"2..32768"`
	// Metric measures the distance of two vectors: IP (inner product), L2
	// (Euclidean) or COSINE.
	Metric Metric `yaml:"metric" enum:"IP,L2,COSINE"`
	// Zone that runs the vector database; empty means the first full zone.
	Zone string `yaml:"zone"`
}

func defaultVectors() Vectors {
	return Vectors{Engine: EngineMilvus, Dimension: 768, Metric: MetricIP}
}
