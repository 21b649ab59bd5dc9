// Package lifecycle tests how a stack on one machine begins, ends and survives
// mistakes: wrong input, interrupted starts, killed supervisors, missing
// rights. It runs the real binary with the real servers.
package lifecycle
