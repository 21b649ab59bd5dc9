//go:build race

package zonenet

const raceEnabled = true
