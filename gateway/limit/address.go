package limit

import (
	"fmt"
	"net/netip"
	"strings"
)

// maxHops bounds how much of X-Forwarded-For is looked at, from its end.
const maxHops = 32

// Proxies are the networks whose word about a client's address is believed.
type Proxies []netip.Prefix

// ParseProxies reads CIDR networks and single addresses.
func ParseProxies(list []string, bad func(field, format string, args ...any)) Proxies {
	var out Proxies
	for i, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a, aerr := netip.ParseAddr(s)
			if aerr != nil || a.Zone() != "" {
				bad(fmt.Sprintf("trustedProxies[%d]", i), `%q is not a network like "10.0.0.0/8" or an address`, s)
				continue
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		out = append(out, p.Masked())
	}
	return out
}

func (p Proxies) trust(a netip.Addr) bool {
	for _, n := range p {
		if n.Contains(a) {
			return true
		}
	}
	return false
}

// Client is the address of who sent a request: of the connection's other end,
// or, when that is a trusted proxy, the last address in X-Forwarded-For that is
// not one. Everything left of that could have been made up by the client. The
// result is invalid when remote is no address.
func (p Proxies) Client(remote string, forwardedFor []string) netip.Addr {
	client := hop(remote)
	if len(p) == 0 || !client.IsValid() {
		return client
	}
	hops := 0
	for i := len(forwardedFor) - 1; i >= 0; i-- {
		for rest, more := forwardedFor[i], true; more; {
			if !p.trust(client) || hops == maxHops {
				return client
			}
			hops++
			var last string
			if at := strings.LastIndexByte(rest, ','); at >= 0 {
				rest, last = rest[:at], rest[at+1:]
			} else {
				last, more = rest, false
			}
			next := hop(strings.TrimSpace(last))
			if !next.IsValid() {
				return client // the last one somebody trusted has named
			}
			client = next
		}
	}
	return client
}

// hop reads an address with or without a port.
func hop(s string) netip.Addr {
	a, err := netip.ParseAddr(strings.Trim(s, "[]"))
	if err != nil {
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			return netip.Addr{}
		}
		a = ap.Addr()
	}
	return a.Unmap().WithZone("")
}

// Network is what a limit by address counts: an IPv4 address, or the /64 of an
// IPv6 one, which is what one customer has at least. Invalid is "".
func Network(a netip.Addr) string {
	switch {
	case !a.IsValid():
		return ""
	case a.Is4():
		return a.String()
	}
	p, err := a.Prefix(64)
	if err != nil {
		return ""
	}
	return p.Masked().String()
}
