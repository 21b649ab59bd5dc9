package embed

import (
	"math"
	"testing"
)

func dot(a, b []float32) float64 {
	var s float64
	for i := range a {
		s += float64(a[i]) * float64(b[i])
	}
	return s
}

func TestSimilarTextsAreNear(t *testing.T) {
	const dim = 256
	for _, tc := range []struct{ query, near, far string }{
		{"yellow banana", "Bananas are yellow fruits.", "PostgreSQL replicates its log."},
		{"synchronous replication", "Replication is synchronous in PostgreSQL", "walruses have long tusks"},
		{"高可用集群", "集群的高可用", "香蕉是黄色的水果"},
	} {
		q := Vector(tc.query, dim)
		if n, f := dot(q, Vector(tc.near, dim)), dot(q, Vector(tc.far, dim)); n <= f+0.1 {
			t.Errorf("%q: near %.2f, far %.2f", tc.query, n, f)
		}
	}
}

func TestVectorsHaveLengthOne(t *testing.T) {
	for _, text := range []string{"", "!!!", "a", "some words here", "一"} {
		for _, dim := range []int{8, 256, 1536} {
			v := Vector(text, dim)
			if len(v) != dim || math.Abs(dot(v, v)-1) > 1e-5 {
				t.Errorf("%q in %d: length %v", text, dim, dot(v, v))
			}
			if dot(v, Vector(text, dim)) < 0.99999 {
				t.Errorf("%q: not the same twice", text)
			}
		}
	}
}
