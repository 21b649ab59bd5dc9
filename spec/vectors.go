package spec

// VectorEngine is a vector database.
type VectorEngine string

// EngineMilvus is Milvus.
const EngineMilvus VectorEngine = "milvus"

// Vectors configures the vector database.
type Vectors struct {
	// Engine is the vector database.
	Engine VectorEngine `yaml:"engine" enum:"milvus"`
	// Dimension of the embeddings. It belongs to the embedding model (768 for
	// BERT) and cannot change once documents are indexed.
	Dimension int `yaml:"dimension" range:"2..32768"`
	// Zone that runs the vector database; empty means the first full zone.
	Zone string `yaml:"zone"`
}

func defaultVectors() Vectors {
	return Vectors{Engine: EngineMilvus, Dimension: 768}
}
