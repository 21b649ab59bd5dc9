// Package keyspace maps the 16 logical databases of one Redis onto the single
// keyspace of a cluster. Database 0 is the cluster's keyspace as it is, so its
// keys spread over all nodes. Every other database n lives under the prefix
// "{dbn}:", whose hash tag keeps the whole database in one slot: transactions,
// scripts and blocking pops over several keys keep their single-node meaning.
package keyspace

import (
	"bytes"
	"strconv"
)

// Slots is the number of hash slots of a Redis Cluster.
const Slots = 16384

// Databases is how many logical databases there are.
const Databases = 16

// DB is one logical database. Values come from New and are immutable.
type DB struct {
	// Index is the number that SELECT takes, 0 to Databases-1.
	Index int
	// Prefix stands before every key of the database; empty for database 0.
	Prefix []byte
	// Slot holds all keys of the database, or is -1 when they are spread.
	Slot int
}

// New returns the logical database with the given number, 0 to Databases-1.
func New(index int) DB {
	if index == 0 {
		return DB{Slot: -1}
	}
	prefix := []byte("{db" + strconv.Itoa(index) + "}:")
	return DB{Index: index, Prefix: prefix, Slot: Slot(prefix)}
}

// Sharded tells whether the keys are spread over the cluster.
func (d DB) Sharded() bool { return d.Slot < 0 }

// AppendKey appends the name under which the cluster stores key.
func (d DB) AppendKey(dst, key []byte) []byte {
	return append(append(dst, d.Prefix...), key...)
}

// Strip returns the client's name of a stored key, and whether the key
// belongs to this database.
func (d DB) Strip(stored []byte) ([]byte, bool) {
	if d.Sharded() {
		return stored, !Reserved(stored)
	}
	return bytes.CutPrefix(stored, d.Prefix)
}

// KeySlot returns the slot of a client's key.
func (d DB) KeySlot(key []byte) int {
	if d.Slot >= 0 {
		return d.Slot
	}
	return Slot(key)
}

// Reserved tells whether a stored key belongs to a database other than 0.
func Reserved(stored []byte) bool {
	if len(stored) < 6 || stored[0] != '{' || stored[1] != 'd' || stored[2] != 'b' {
		return false
	}
	i, n := 3, 0
	for i < len(stored) && i < 5 && stored[i] >= '0' && stored[i] <= '9' {
		n = n*10 + int(stored[i]-'0')
		i++
	}
	return stored[3] != '0' && n > 0 && n < Databases && bytes.HasPrefix(stored[i:], []byte("}:"))
}

// Slot computes the hash slot of a stored key: CRC16 (XMODEM) of the key or
// of its first non-empty {tag}.
func Slot(key []byte) int {
	if i := bytes.IndexByte(key, '{'); i >= 0 {
		if j := bytes.IndexByte(key[i+1:], '}'); j > 0 {
			key = key[i+1 : i+1+j]
		}
	}
	var crc uint16
	for _, b := range key {
		crc = crc<<8 ^ crcTable[byte(crc>>8)^b]
	}
	return int(crc % Slots)
}

// crcTable is the table of CRC16/XMODEM, polynomial 0x1021.
var crcTable = func() (t [256]uint16) {
	for i := range t {
		crc := uint16(i) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
		t[i] = crc
	}
	return t
}()

// EscapePattern appends s to dst so that it matches itself in a glob pattern.
func EscapePattern(dst, s []byte) []byte {
	for _, c := range s {
		switch c {
		case '*', '?', '[', ']', '\\', '^':
			dst = append(dst, '\\')
		}
		dst = append(dst, c)
	}
	return dst
}
