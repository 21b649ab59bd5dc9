// Package rig is what side-by-side benchmarks share: it starts contenders one
// after another, each with its configuration, lets them take turns over all
// rows, reads from the kernel what each used, and sums up.
package rig
