// Package postgresdrill breaks the database layer while clients write, and
// measures what they get: the failover table of docs/postgres.md.
//
// A cluster of it is the database layer of a stack with the real servers: etcd
// and Patroni with PostgreSQL in each of three zones, and a pgproxy in two of
// them. As root the zones are network namespaces that can be cut; without it
// they are loopback addresses, and the faults of the network are skipped.
package postgresdrill
