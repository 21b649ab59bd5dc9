//go:build !linux

// Command gateway measures the gateway side by side with other proxies. It
// needs Linux: /proc tells what a process used, epoll makes the load cheap.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "bench: this needs Linux")
	os.Exit(1)
}
