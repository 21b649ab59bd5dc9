package gateway

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/pires/go-proxyproto"
)

// The values of ProxyProtocol.Mode.
const (
	ProxyProtocolOff    = "off"
	ProxyProtocolAccept = "accept"
)

// ProxyProtocol lets a load balancer that forwards connections say who the
// client is (HAProxy's PROXY protocol, version 1 or 2). The client's address is
// then the one that the header names: in limits, in the access log, and in the
// X-Forwarded-For that Dify sees.
type ProxyProtocol struct {
	// Mode is "off" (default) or "accept".
	Mode string `yaml:"mode"`
	// From are the networks (CIDR) or addresses of the load balancers, needed
	// with "accept". Their connections may begin with a header; one without it
	// counts with its own address. From anywhere else a header is an error.
	From []string `yaml:"from"`
}

func (p *ProxyProtocol) validate(bad func(field, format string, args ...any)) {
	switch p.Mode {
	case ProxyProtocolOff:
	case ProxyProtocolAccept:
		if len(p.From) == 0 {
			bad("proxyProtocol.from", "needed with mode accept: whoever may send the header can claim any address")
		}
	default:
		bad("proxyProtocol.mode", "%q is neither %s nor %s", p.Mode, ProxyProtocolOff, ProxyProtocolAccept)
	}
	for i, s := range p.From {
		if _, err := parseNetwork(s); err != nil {
			bad(fmt.Sprintf("proxyProtocol.from[%d]", i), `%q is not a network like "10.0.0.0/8" or an address`, s)
		}
	}
}

func parseNetwork(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	return p.Masked(), err
}

// proxyListener reads PROXY headers on ln, if the settings say so. Who is
// trusted follows a reload; the mode does not.
func (g *Gateway) proxyListener(ln net.Listener) net.Listener {
	set := g.settings.Load()
	if set.ProxyProtocol.Mode != ProxyProtocolAccept {
		return ln
	}
	return &proxyListener{proxyproto.Listener{
		Listener: ln, ReadHeaderTimeout: max(time.Millisecond, set.Limits.HeaderTimeout),
		ConnPolicy: func(c proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) {
			if from, ok := c.Upstream.(*net.TCPAddr); ok {
				a := from.AddrPort().Addr().Unmap()
				for _, n := range g.settings.Load().proxyFrom {
					if n.Contains(a) {
						return proxyproto.USE, nil
					}
				}
			}
			return proxyproto.SKIP, nil // a header is then a bad request
		},
	}}
}

type proxyListener struct{ proxyproto.Listener }

// Accept implements net.Listener.
func (l *proxyListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if p, ok := c.(*proxyproto.Conn); ok {
		return proxiedConn{p}, err
	}
	return c, err
}

// proxiedConn is a connection whose PROXY header is read, with the half-close
// that net/http looks for.
type proxiedConn struct{ *proxyproto.Conn }

// CloseWrite ends the sending side.
func (c proxiedConn) CloseWrite() error {
	if t, ok := c.TCPConn(); ok {
		return t.CloseWrite()
	}
	return nil
}
