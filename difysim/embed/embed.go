// Package embed turns text into vectors without a model: words and their letter
// groups are hashed into the dimensions, so that texts that share words or word
// stems are near each other. The same text gives the same vector everywhere.
package embed

import (
	"hash/fnv"
	"math"
	"strings"
	"unicode"
)

// Name is the model name that the simulator reports.
const Name = "difysim-hash-ngram"

// Weights of the features: whole words say most, letter groups find inflected
// forms and misspellings.
const (
	wordWeight = 1.0
	gramWeight = 0.35
	gramLength = 3
)

// Vector returns the vector of text with the given dimension, of length 1; a
// text without letters or digits gives a fixed unit vector.
func Vector(text string, dimension int) []float32 {
	acc := make([]float64, dimension)
	for _, w := range words(text) {
		add(acc, "w:"+w, wordWeight)
		r := []rune("^" + w + "$")
		for i := 0; i+gramLength <= len(r); i++ {
			add(acc, "g:"+string(r[i:i+gramLength]), gramWeight)
		}
	}
	var sum float64
	for _, v := range acc {
		sum += v * v
	}
	out := make([]float32, dimension)
	if sum == 0 {
		out[0] = 1
		return out
	}
	norm := math.Sqrt(sum)
	for i, v := range acc {
		out[i] = float32(v / norm)
	}
	return out
}

func add(acc []float64, feature string, weight float64) {
	h := fnv.New64a()
	_, _ = h.Write([]byte(feature))
	v := h.Sum64()
	v ^= v >> 29 // FNV's high bits mix poorly for short texts
	v *= 0xbf58476d1ce4e5b9
	v ^= v >> 32
	sign := 1.0
	if v&1 == 1 {
		sign = -1
	}
	acc[(v>>1)%uint64(len(acc))] += sign * weight
}

// words splits at everything that is not a letter or digit; Han characters are
// words of their own, because Chinese has no spaces.
func words(text string) []string {
	var out []string
	var b strings.Builder
	flush := func() {
		if b.Len() > 0 {
			out = append(out, b.String())
			b.Reset()
		}
	}
	for _, r := range text {
		switch {
		case unicode.Is(unicode.Han, r):
			flush()
			out = append(out, string(r))
		case unicode.IsLetter(r) || unicode.IsDigit(r):
			b.WriteRune(unicode.ToLower(r))
		default:
			flush()
		}
	}
	flush()
	return out
}
