package local

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"fournines/internal/eventually"
	"fournines/internal/process"
	"fournines/internal/servertest"
)

func TestFollowLogOverRotations(t *testing.T) {
	dir := newDir(t)
	path := LogPath(dir, "u")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	ok(t, err)
	defer f.Close()
	n := 0
	write := func(lines int) {
		var b strings.Builder
		for range lines {
			fmt.Fprintf(&b, "line %06d\n", n)
			n++
		}
		_, err := f.WriteString(b.String())
		ok(t, err)
	}
	write(2000)
	var out servertest.Output
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- FollowLog(ctx, dir, "u", 10, &out) }()
	for round := range 3 {
		eventually.Nil(t, limit, func() error {
			if !strings.Contains(out.String(), fmt.Sprintf("line %06d\n", n-1)) {
				return fmt.Errorf("round %d: line %d not seen", round, n-1)
			}
			return nil
		})
		write(1000) // half of it seen before the rotation, half after
		rotated, err := process.RotateLog(path, 4096, 3)
		if err != nil || !rotated {
			t.Fatalf("rotated %v, %v", rotated, err)
		}
		write(10)
	}
	eventually.Nil(t, limit, func() error {
		if !strings.HasSuffix(out.String(), fmt.Sprintf("line %06d\n", n-1)) {
			return fmt.Errorf("line %d not seen", n-1)
		}
		return nil
	})
	cancel()
	ok(t, <-done)
	var want strings.Builder
	for i := 1990; i < n; i++ {
		fmt.Fprintf(&want, "line %06d\n", i)
	}
	if out.String() != want.String() {
		t.Errorf("got %d lines, want %d, or in another order", strings.Count(out.String(), "\n"), strings.Count(want.String(), "\n"))
	}
	tail, err := TailLog(dir, "u", 1500)
	ok(t, err)
	if got := strings.Count(string(tail), "\n"); got != 1500 {
		t.Errorf("tail over rotated files has %d lines", got)
	}
}

func TestLastLines(t *testing.T) {
	for _, tc := range []struct {
		in   string
		n    int
		want string
	}{
		{"a\nb\nc\n", 2, "b\nc\n"}, {"a\nb\nc", 2, "b\nc"}, {"a\n", 5, "a\n"}, {"", 5, ""}, {"a\nb\n", 0, ""}, {"\n\n", 1, "\n"},
	} {
		if got := string(lastLines([]byte(tc.in), tc.n)); got != tc.want {
			t.Errorf("%q, %d: got %q, want %q", tc.in, tc.n, got, tc.want)
		}
	}
}
