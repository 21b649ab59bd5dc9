//go:build !race

package zonenet

const raceEnabled = false
