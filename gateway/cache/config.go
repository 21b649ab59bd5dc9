package cache

import "time"

// How the text of queries is made alike before two of them are compared.
const (
	// NormaliseNone compares texts as they are: only the form of the JSON around
	// them (order of members, white space, escapes) makes no difference.
	NormaliseNone = "none"
	// NormaliseSpace also trims white space and takes any run of it for one space.
	NormaliseSpace = "space"
	// NormaliseFold also takes compatibility forms (NFKC) and upper and lower
	// case for the same.
	NormaliseFold = "fold"
)

// Config sets the cache of retrievals.
type Config struct {
	// Enabled answers repeated retrievals from memory. Default false: whoever
	// turns it on knows that writes to knowledge pass the gateways.
	Enabled bool `yaml:"enabled"`
	// MaxBytes of memory for entries. 1 MiB to 64 GiB; default 64 MiB, about
	// 10,000 answers of 6 KB.
	MaxBytes int64 `yaml:"maxBytes"`
	// MaxEntryBytes is how large an answer may be to be kept. 1 KiB to 16 MiB
	// and at most maxBytes/8; default 256 KiB.
	MaxEntryBytes int64 `yaml:"maxEntryBytes"`
	// TTL is how long an answer is fresh when no write is seen: the bound of its
	// age for changes that pass no gateway. 100ms to 24h; default 5m.
	TTL time.Duration `yaml:"ttl"`
	// StaleIfError is how long after that an answer is given, marked as stale,
	// while the instances fail. 0s to 24h; default 1h.
	StaleIfError time.Duration `yaml:"staleIfError"`
	// StaleAfter is how long the instances may take before they count as
	// failing, for a request that has a stale answer. 10ms to 10m; default 3s.
	StaleAfter time.Duration `yaml:"staleAfter"`
	// RetryAfter is how long a data set whose instances failed is answered with
	// stale answers before they are asked again. 0s to 1m; default 1s.
	RetryAfter time.Duration `yaml:"retryAfter"`
	// MaxStaleness is how long another gateway's writes may go unnoticed: no
	// answer is given that is older than the last write that any gateway has
	// acknowledged this long ago. 0s asks Redis for each hit; at most 1m,
	// default 1s. Without redis gateways know of their own writes only.
	MaxStaleness time.Duration `yaml:"maxStaleness"`
	// Settle is how long after a write the data set is not cached, because its
	// index follows later. The indexing of new documents is watched and extends
	// it. 0s to 10m; default 10s.
	Settle time.Duration `yaml:"settle"`
	// IndexingTimeout is how long an indexing is watched at most. 1s to 24h;
	// default 30m.
	IndexingTimeout time.Duration `yaml:"indexingTimeout"`
	// Normalise is how query texts are made alike: none (default), space or
	// fold.
	Normalise string `yaml:"normalise"`
}

// DefaultConfig returns the defaults named above.
func DefaultConfig() Config {
	return Config{
		MaxBytes: 64 << 20, MaxEntryBytes: 256 << 10, TTL: 5 * time.Minute, StaleIfError: time.Hour,
		StaleAfter: 3 * time.Second, RetryAfter: time.Second, MaxStaleness: time.Second, Settle: 10 * time.Second,
		IndexingTimeout: 30 * time.Minute, Normalise: NormaliseNone,
	}
}

// Validate reports each value out of its range, under the name "cache.".
func (c *Config) Validate(bad func(field, format string, args ...any)) {
	number := func(field string, n, least, most int64) {
		if n < least || n > most {
			bad("cache."+field, "%d is not between %d and %d", n, least, most)
		}
	}
	number("maxBytes", c.MaxBytes, 1<<20, 64<<30)
	number("maxEntryBytes", c.MaxEntryBytes, 1<<10, min(16<<20, max(c.MaxBytes, 1<<20)/8))
	span := func(field string, d, least, most time.Duration) {
		if d < least || d > most {
			bad("cache."+field, "%v is not between %v and %v", d, least, most)
		}
	}
	const day = 24 * time.Hour
	span("ttl", c.TTL, 100*time.Millisecond, day)
	span("staleIfError", c.StaleIfError, 0, day)
	span("staleAfter", c.StaleAfter, 10*time.Millisecond, 10*time.Minute)
	span("retryAfter", c.RetryAfter, 0, time.Minute)
	span("maxStaleness", c.MaxStaleness, 0, time.Minute)
	span("settle", c.Settle, 0, 10*time.Minute)
	span("indexingTimeout", c.IndexingTimeout, time.Second, day)
	switch c.Normalise {
	case NormaliseNone, NormaliseSpace, NormaliseFold:
	default:
		bad("cache.normalise", "%q is none of none, space and fold", c.Normalise)
	}
}
