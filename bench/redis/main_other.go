//go:build !linux

// Command redis measures redisproxy side by side with other proxies. It needs
// Linux: /proc tells what a process used.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "bench: this needs Linux")
	os.Exit(1)
}
