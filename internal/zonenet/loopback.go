package zonenet

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"net/netip"
	"os"
	"strings"
)

// ensureLoopback has nothing to make: all of 127.0.0.0/8 is there. It only
// chooses the range.
func (n *Network) ensureLoopback() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.number != 0 {
		return nil
	}
	var used []netip.Prefix
	data, err := os.ReadFile("/proc/net/tcp")
	if err == nil {
		used = listeningRanges(data)
	}
	number, _, err := chooseNumber(n.cfg.ID, 127, used)
	if err != nil {
		return err
	}
	n.number = number
	return nil
}

// listeningRanges reads /proc/net/tcp: the /16 of each address that has a
// listener, which is taken to belong to another stack.
func listeningRanges(procNetTCP []byte) []netip.Prefix {
	const stateListen = "0A"
	var out []netip.Prefix
	for s := bufio.NewScanner(bytes.NewReader(procNetTCP)); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) < 4 || f[3] != stateListen {
			continue
		}
		host, _, _ := strings.Cut(f[1], ":")
		b, err := hex.DecodeString(host)
		if err != nil || len(b) != 4 {
			continue
		}
		// The kernel prints the address as a number in the byte order of the
		// machine; every supported one is little-endian.
		addr := netip.AddrFrom4([4]byte{b[3], b[2], b[1], b[0]})
		if p, err := addr.Prefix(16); err == nil {
			out = append(out, p)
		}
	}
	return out
}
