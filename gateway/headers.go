package gateway

import (
	"crypto/rand"
	"encoding/hex"
	"net"
	"net/http"
	"strings"
)

// hopByHop are the headers that belong to one connection.
var hopByHop = [...]string{
	"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
	"Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// stripHopByHop removes them and whatever Connection names.
func stripHopByHop(h http.Header) {
	for _, line := range h["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			if name = strings.TrimSpace(name); name != "" {
				h.Del(name)
			}
		}
	}
	for _, name := range hopByHop {
		delete(h, name)
	}
}

// upgradeType returns the protocol that the headers ask to switch to, or "". Only
// WebSocket is one: a switch to h2c would open a tunnel to the instance through
// which requests go unseen, without limits and without a log.
func upgradeType(h http.Header) string {
	for _, line := range h["Connection"] {
		for token := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(token), "upgrade") {
				if protocol := h.Get("Upgrade"); strings.EqualFold(protocol, "websocket") {
					return protocol
				}
				return ""
			}
		}
	}
	return ""
}

// maxRequestID bounds a request id that is taken over from the client.
const maxRequestID = 128

// requestID keeps the client's id when it is harmless in a log, or makes one.
func requestID(h http.Header) string {
	id := h.Get("X-Request-Id")
	if id != "" && len(id) <= maxRequestID {
		ok := true
		for i := range len(id) {
			if id[i] <= ' ' || id[i] > '~' {
				ok = false
				break
			}
		}
		if ok {
			return id
		}
	}
	var b [16]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails
	return hex.EncodeToString(b[:])
}

// outgoing turns the client's header into the one for the instance, in place.
// The W3C trace context and everything else end-to-end passes as it is.
func outgoing(r *http.Request, id string) {
	h := r.Header
	upgrade := upgradeType(h)
	stripHopByHop(h)
	if upgrade != "" {
		h["Connection"] = []string{"Upgrade"}
		h["Upgrade"] = []string{upgrade}
	}
	// The body is asked for here; waiting for the instance's "100 Continue"
	// would only delay what is already on its way.
	delete(h, "Expect")
	client := r.RemoteAddr
	if host, _, err := net.SplitHostPort(client); err == nil {
		client = host
	}
	if prior := h["X-Forwarded-For"]; len(prior) > 0 {
		client = strings.Join(prior, ", ") + ", " + client
	}
	h["X-Forwarded-For"] = []string{client}
	if _, ok := h["X-Forwarded-Proto"]; !ok {
		proto := "http"
		if r.TLS != nil {
			proto = "https"
		}
		h["X-Forwarded-Proto"] = []string{proto}
	}
	if _, ok := h["X-Forwarded-Host"]; !ok {
		h["X-Forwarded-Host"] = []string{r.Host}
	}
	h["X-Request-Id"] = []string{id}
}
