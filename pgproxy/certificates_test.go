package pgproxy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

// writeCertificate writes a self-signed certificate and its key into dir.
func writeCertificate(t *testing.T, dir, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// Certificates that change on disk are taken without a reload, on both sides.
func TestCertificatesAreReplaced(t *testing.T) {
	ours, theirs := t.TempDir(), t.TempDir()
	certFile, keyFile := writeCertificate(t, ours, "first")
	serverCert, serverKey := writeCertificate(t, theirs, "server")
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
	writeCertificate(t, ours, "second")
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
