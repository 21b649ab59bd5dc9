package pgproxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

// Certificates that change on disk are taken without a reload, on both sides.
func TestCertificatesAreReplaced(t *testing.T) {
	ours, theirs := t.TempDir(), t.TempDir()
	certFile, keyFile := servertest.Certificate(t, ours, "first", "127.0.0.1")
	serverCert, serverKey := servertest.Certificate(t, theirs, "server", "127.0.0.1")
	db := servertest.NewPostgres(t, servertest.PostgresOptions{TLSCertFile: serverCert, TLSKeyFile: serverKey})
	authority, err := os.ReadFile(serverCert)
	if err != nil {
		t.Fatal(err)
	}
	caFile := filepath.Join(ours, "ca.pem")
	other, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(caFile, other, 0o600); err != nil {
		t.Fatal(err)
	}
	r := startProxy(t, func(c *Config) {
		c.TLS = ClientTLS{CertFile: certFile, KeyFile: keyFile, Required: true, Poll: 10 * time.Millisecond}
		c.ServerTLS = ServerTLS{Mode: "verify-ca", CAFile: caFile}
	}, db)
	eventually.Nil(t, time.Minute, func() error {
		if v := r.Status(); v.Primary != nil || v.Servers[0].Err == nil {
			return fmt.Errorf("the wrong authority is accepted, or nobody was asked yet: %w", v.Servers[0].Err)
		}
		return nil
	})
	if err := os.WriteFile(caFile, authority, 0o600); err != nil {
		t.Fatal(err)
	}
	name := func() (string, error) {
		cfg, err := pgx.ParseConfig(r.dsn())
		if err != nil {
			return "", err
		}
		cfg.TLSConfig, cfg.Fallbacks = &tls.Config{InsecureSkipVerify: true}, nil //nolint:gosec // the test looks at the certificate
		conn, err := pgx.ConnectConfig(ctxT(t), cfg)
		if err != nil {
			return "", err
		}
		defer conn.Close(ctxT(t))
		if _, err := conn.Exec(ctxT(t), "SELECT 1"); err != nil {
			return "", err
		}
		return conn.PgConn().Conn().(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName, nil
	}
	is := func(want string) {
		t.Helper()
		eventually.Nil(t, time.Minute, func() error {
			if got, err := name(); err != nil || got != want {
				return fmt.Errorf("certificate %q, want %q, %w; the server: %w", got, want, err, r.Status().Servers[0].Err)
			}
			return nil
		})
	}
	is("first")
	servertest.Certificate(t, ours, "second", "127.0.0.1")
	is("second")
	if err := os.WriteFile(keyFile, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually.Nil(t, time.Minute, func() error {
		if r.metrics.certificatesRefused.Load() == 0 {
			return errors.New("the broken key was not looked at")
		}
		return nil
	})
	is("second")
}
