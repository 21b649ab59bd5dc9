// Package gatewaydrill breaks everything around the gateway while requests
// arrive, and measures what clients get: the fault table of docs/gateway.md, the
// price of a zone that is far away, and a soak.
//
// A cluster of it is what stands between a client and Dify: a load balancer,
// one gateway and two instances in each of two zones, and a third zone that is
// empty. All are processes of the fournines binary; the instances are its stub
// of Dify, which needs no servers. As root the zones are network namespaces that
// can be cut; without it they are loopback addresses, and the faults of the
// network are skipped.
package gatewaydrill
