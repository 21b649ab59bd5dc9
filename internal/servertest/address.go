package servertest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
)

// FreeAddress returns a loopback address with a port that nobody listens on,
// for a server of the test that listens there later or again. The host is chosen
// at random, not 127.0.0.1: there the port could become that of an outgoing
// connection of another program before the server has it.
func FreeAddress(tb testing.TB) string {
	tb.Helper()
	host := LoopbackHost()
	return net.JoinHostPort(host, strconv.Itoa(freePort(tb, host)))
}

// freePort is a port of host that nobody listens on.
func freePort(tb testing.TB, host string) int {
	tb.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		tb.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// LoopbackHost is a random address of 127.200.0.0 to 127.249.255.255, which
// nobody else is likely to use.
func LoopbackHost() string {
	return fmt.Sprintf("127.%d.%d.%d", 200+rand.N(50), rand.N(256), 1+rand.N(254))
}
