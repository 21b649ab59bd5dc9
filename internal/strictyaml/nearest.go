package strictyaml

import (
	"slices"
	"strings"
)

// maxListed bounds the valid names that an error enumerates.
const maxListed = 16

// suggest says which of the valid names was meant, or which there are.
func suggest(name string, valid []string) string {
	if best := Nearest(name, valid); best != "" {
		return `did you mean "` + best + `"?`
	}
	if len(valid) == 0 || len(valid) > maxListed {
		return ""
	}
	return "valid here: " + strings.Join(valid, ", ")
}

// Suggest is for validators: it returns the hint `did you mean "x"?` for a
// wrong word when a valid one is close, else the list of valid words.
func Suggest(word string, valid []string) string { return suggest(word, valid) }

// Nearest returns the valid name closest to name, or "" when none is close
// enough to be what was meant: about a third of the letters may be wrong.
func Nearest(name string, valid []string) string {
	const longest = 64
	if len(name) > longest {
		return ""
	}
	folded := fold(name)
	best, bestDistance := "", max(1, len(folded)/3)+1
	for _, v := range slices.Sorted(slices.Values(valid)) {
		target := fold(v)
		d := distance(folded, target)
		// An abbreviation or a longer form is a likely slip too; of two names
		// that begin it, the longer one says more.
		longer := len(target) >= 3 && strings.HasPrefix(folded, target)
		if d > 1 && (longer || len(folded) >= 3 && strings.HasPrefix(target, folded)) {
			d = 1
		}
		// Two short names without a common letter are no likely slip.
		if d >= max(len(folded), len(target)) {
			continue
		}
		if d < bestDistance || d == bestDistance && longer && len(v) > len(best) {
			best, bestDistance = v, d
		}
	}
	return best
}

// fold makes max_body, max-body and maxBody equal.
func fold(s string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "", " ", "").Replace(s))
}

// distance is the number of single-letter insertions, deletions,
// substitutions and swaps of neighbours between a and b.
func distance(a, b string) int {
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}
