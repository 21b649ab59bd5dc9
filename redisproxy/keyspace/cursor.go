package keyspace

// Cursor is the position of a SCAN over the nodes of the cluster. Clients see
// it as one integer, as SCAN's cursor must be, below 2^63.
type Cursor struct {
	// Shard counts the masters in the order of their lowest slot.
	Shard int
	// Tag marks the process that issued Node; a cursor means nothing to another
	// process, whose hash tables are ordered differently.
	Tag uint32
	// Node is the cursor of that process.
	Node uint64
}

const (
	shardBits = 9
	tagBits   = 14
	nodeBits  = 63 - shardBits - tagBits

	// MaxShards is how many masters a cursor can tell apart.
	MaxShards = 1 << shardBits
)

// Encode packs the cursor; ok is false when a part does not fit.
func (c Cursor) Encode() (n uint64, ok bool) {
	if c.Shard < 0 || c.Shard >= MaxShards || c.Node >= 1<<nodeBits {
		return 0, false
	}
	tag := uint64(c.Tag % (1 << tagBits))
	return (c.Node<<tagBits|tag)<<shardBits | uint64(c.Shard), true
}

// DecodeCursor unpacks what Encode packed.
func DecodeCursor(n uint64) Cursor {
	return Cursor{
		Shard: int(n % (1 << shardBits)),
		Tag:   uint32(n >> shardBits % (1 << tagBits)),
		Node:  n >> (shardBits + tagBits),
	}
}

// SameTag tells whether tag is the one that the cursor was encoded with.
func (c Cursor) SameTag(tag uint32) bool { return c.Tag == tag%(1<<tagBits) }
