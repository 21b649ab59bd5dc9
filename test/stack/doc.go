// Package stack tests the whole product: it starts a real stack with the real
// binary, uses it through clients that others wrote, and breaks it.
package stack
