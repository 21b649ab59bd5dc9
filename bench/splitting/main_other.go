//go:build !linux

// Command splitting measures what read/write splitting costs. It needs Linux.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "bench: this needs Linux")
	os.Exit(1)
}
