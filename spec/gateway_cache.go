package spec

// GatewayCache sets the cache of retrievals.
type GatewayCache struct {
	// Enabled answers a retrieval that was asked before with the same API key
	// from memory. Writes through any gateway end that at all of them; turn it
	// on when writes to knowledge take no other way.
	Enabled bool `yaml:"enabled"`
	// MaxSize is each gateway's memory for answers; one takes about 6 KiB.
	MaxSize Bytes `yaml:"maxSize" range:"1MiB..64GiB"`
	// MaxEntry is the largest answer that is kept. At most an eighth of maxSize.
	MaxEntry Bytes `yaml:"maxEntry" range:"1KiB..16MiB"`
	// TTL is how long an answer is fresh when no write is seen.
	TTL Duration `yaml:"ttl" range:"100ms..24h"`
	// StaleIfError is how long after that an answer is given, marked as stale,
	// while the api instances fail. 0s means never.
	StaleIfError Duration `yaml:"staleIfError" range:"0s..24h"`
	// MaxStaleness is how long a write at another gateway may go unnoticed. 0s
	// asks Redis at each hit.
	MaxStaleness Duration `yaml:"maxStaleness" range:"0s..1m"`
	// Settle is how long after a write its data set is not cached, because
	// workers change the index later. Indexing of documents is watched and
	// extends it.
	Settle Duration `yaml:"settle" range:"0s..10m"`
	// Normalise says which texts of queries count as the same: none compares
	// them as they are, space by words, fold by words without upper and lower
	// case.
	Normalise string `yaml:"normalise" enum:"none,space,fold"`
}

func defaultGatewayCache() GatewayCache {
	return GatewayCache{
		MaxSize: 64 * mebibyte, MaxEntry: 256 * kibibyte, TTL: Duration(5 * minute), StaleIfError: Duration(60 * minute),
		MaxStaleness: Duration(1 * second), Settle: Duration(10 * second), Normalise: "none",
	}
}

// gatewayCache checks what tags cannot say.
func (c *checker) gatewayCache() {
	s := c.spec.Gateway.Cache
	if s.MaxEntry > s.MaxSize/8 {
		c.add("gateway.cache.maxEntry", "make it at most an eighth of gateway.cache.maxSize", "%s is more than an eighth of %s", s.MaxEntry, s.MaxSize)
	}
}
