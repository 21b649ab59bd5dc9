package gateway

import (
	"time"

	"fournines/internal/http1"
)

const (
	// upstreamIdle is how long an unused connection to an instance is kept. It
	// must be less than gunicorn's keep-alive of 2s: a connection that the
	// instance closes while a request is on its way is a lost request.
	upstreamIdle = 1500 * time.Millisecond
	// upstreamUserTimeout is how long sent bytes may stay unacknowledged, and
	// how long an instance may leave its receive window shut: the kernel treats
	// both alike, so it must be longer than an instance's worst pause in reading
	// an upload. It also bounds how long a silent stream's host may be dead.
	upstreamUserTimeout = 10 * time.Second
	// upstreamIdleMax bounds the unused connections to one instance.
	upstreamIdleMax = 512
	// upstreamHeaderBytes bounds the header of an answer.
	upstreamHeaderBytes = 256 << 10
)

// newTransport makes the connections to all instances. HTTP/1.1 only: gunicorn
// speaks nothing else, and one connection per stream keeps instances' failures
// apart.
func newTransport(connectTimeout time.Duration) *http1.Transport {
	return http1.New(http1.Config{
		ConnectTimeout: connectTimeout,
		UserTimeout:    upstreamUserTimeout,
		IdleTimeout:    upstreamIdle,
		MaxIdle:        upstreamIdleMax,
		MaxHeaderBytes: upstreamHeaderBytes,
	})
}
