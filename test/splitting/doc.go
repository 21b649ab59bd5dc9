// Package splitting holds pgproxy's read/write splitting against its promises,
// on a real primary with two standbys and through two proxies: a checker of what
// reads may miss while replay is delayed at random, and a comparison of random
// SQL with the same SQL past the proxy.
package splitting
