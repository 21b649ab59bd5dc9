package gateway

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"

	"fournines/gateway/dify"
)

// serveUpgrade joins the client and the instance after both agreed to switch
// protocols (WebSocket), until either side ends or the gateway stops.
func (x *exchange) serveUpgrade(up *upstream) {
	defer up.close()
	backend, ok := up.resp.Body.(io.ReadWriteCloser)
	if !ok || !x.upgrade {
		x.fail(dify.ErrBadGateway)
		return
	}
	protocol := up.resp.Header.Get("Upgrade")
	stripHopByHop(up.resp.Header)
	client, buffered, err := x.rc.Hijack()
	if err != nil {
		x.fail(dify.ErrBadGateway)
		return
	}
	defer client.Close()
	x.g.m.streams.Inc()
	defer x.g.m.streams.Dec()
	x.g.usage.opened(x)
	defer x.g.usage.closed(x)
	x.status = http.StatusSwitchingProtocols
	stop := context.AfterFunc(x.r.Context(), func() {
		_ = client.Close()
		_ = backend.Close()
	})
	defer stop()

	header := up.resp.Header
	header["Connection"] = []string{"Upgrade"}
	header["Upgrade"] = []string{protocol}
	header["X-Request-Id"] = []string{x.id}
	header["X-Fournines-Zone"] = x.set.zoneHeader
	header["X-Upstream-Zone"] = []string{x.zone}
	if _, err := io.WriteString(client, "HTTP/1.1 101 Switching Protocols\r\n"); err != nil {
		return
	}
	if header.Write(client) != nil {
		return
	}
	if _, err := io.WriteString(client, "\r\n"); err != nil {
		return
	}

	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(backend, buffered.Reader) // what the server had read already comes first
		_ = backend.Close()
	})
	n, _ := io.Copy(client, backend)
	x.sent += n
	closeWrite(client)
	_ = client.Close()
	_ = backend.Close()
	wg.Wait()
}

// closeWrite lets the last bytes through before the connection closes.
func closeWrite(c net.Conn) {
	if t, ok := c.(interface{ CloseWrite() error }); ok {
		_ = t.CloseWrite()
	}
}
