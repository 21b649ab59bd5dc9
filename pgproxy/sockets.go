package pgproxy

import (
	"context"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"

	"fournines/internal/reactor"
	"fournines/topology"
)

const errTooManyFiles = syscall.EMFILE

// userTimeout is how long data sent to a server may stay unacknowledged. It
// bounds what a cut zone costs even if no probe notices it.
const userTimeout = 10 * time.Second

// tune sets keepalive and TCP_USER_TIMEOUT, so that a peer that vanished
// without a word is noticed.
func tune(conn net.Conn, limit time.Duration) {
	tc, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	_ = tc.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: limit / 2, Interval: limit / 6, Count: 3})
	raw, err := tc.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(limit.Milliseconds()))
	})
}

// hungUp reports whether the peer has closed the connection. It consumes
// nothing, so it may be asked while a request is waiting.
func hungUp(conn net.Conn) bool {
	for {
		u, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = u.NetConn()
	}
	tc, ok := conn.(*net.TCPConn)
	if !ok {
		return false
	}
	raw, err := tc.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	var b [1]byte
	err = raw.Control(func(fd uintptr) {
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		gone = n == 0 && err == nil || err != nil && err != unix.EAGAIN && err != unix.EINTR
	})
	return gone || err != nil
}

// connect opens and authenticates a session with a server.
func connect(ctx context.Context, l *live, e topology.Endpoint, user, password, database string) (*pgconn.PgConn, error) {
	host, port, err := net.SplitHostPort(e.Address)
	if err != nil {
		return nil, err
	}
	cfg, err := pgconn.ParseConfig(fmt.Sprintf("host=127.0.0.1 port=%s sslmode=disable user=x dbname=x connect_timeout=0", port))
	if err != nil {
		return nil, fmt.Errorf("server address %s: %w", e.Address, err)
	}
	cfg.Host, cfg.User, cfg.Password, cfg.Database = host, user, password, database
	cfg.TLSConfig = l.serverTLS(host)
	cfg.Fallbacks = nil
	cfg.RuntimeParams = map[string]string{}
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, addr)
		if err == nil {
			tune(conn, userTimeout)
			conn = reactor.Direct(conn)
		}
		return conn, err
	}
	return pgconn.ConnectConfig(ctx, cfg)
}
