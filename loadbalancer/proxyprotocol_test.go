package loadbalancer

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"fournines/topology"
)

func TestProxyProtocolNamesTheClient(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	seen := &proxyproto.Listener{Listener: ln, ReadHeaderTimeout: patience} // refuses connections without a header
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := seen.Accept()
			if err != nil {
				return
			}
			version := byte(0)
			if h := c.(*proxyproto.Conn).ProxyHeader(); h != nil {
				version = h.Version
			}
			_, _ = fmt.Fprintf(c, "%s %s %d\n", c.RemoteAddr(), c.LocalAddr(), version)
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}()
	cfg := config(Backend{Endpoint: topology.Endpoint{Name: "one", Zone: "a", Address: ln.Addr().String()}})
	cfg.Services[0].ProxyProtocol = true
	b := start(t, cfg)
	for _, source := range []string{"127.10.20.30", "127.10.20.31"} {
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}).Dial("tcp", b.addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(c, "hello\n"); err != nil {
			t.Fatal(err)
		}
		_ = c.(*net.TCPConn).CloseWrite()
		got, err := io.ReadAll(c)
		if want := fmt.Sprintf("%s %s 2\nhello\n", c.LocalAddr(), b.addr); err != nil || string(got) != want {
			t.Errorf("the backend saw %q (%v), want %q", got, err, want)
		}
		_ = c.Close()
	}
	_ = ln.Close()
	<-done
}
