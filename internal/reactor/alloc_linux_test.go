//go:build !race

package reactor

import "testing"

func TestDirectAllocatesNothing(t *testing.T) {
	a, b, _ := pair(t)
	d, e := Direct(a), Direct(b)
	p := make([]byte, 64)
	if n := testing.AllocsPerRun(200, func() {
		_, _ = d.Write(p)
		_, _ = e.Read(p)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
