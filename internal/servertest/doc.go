// Package servertest starts real servers for tests, in temporary directories and
// on loopback addresses, and removes every trace of them when the test ends.
package servertest
