package gateway

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"testing"
	"time"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

// certificate writes a self-signed one for 127.0.0.1.
func certificate(t *testing.T, dir, name string) TLS {
	t.Helper()
	var out TLS
	out.CertFile, out.KeyFile = servertest.Certificate(t, dir, name, "127.0.0.1")
	return out
}

func TestTLSServesHTTP2AndReloadsTheCertificate(t *testing.T) {
	dir := t.TempDir()
	a := newInstance(t, "zone-a", say("a"))
	cfg := testConfig(a)
	cfg.TLS = certificate(t, dir, "first")
	g := start(t, cfg)
	name := func() string {
		t.Helper()
		tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr, Timeout: patience}).Get("https://" + g.addr + "/v1/meta")
		if err != nil {
			t.Fatal(err)
		}
		if status, body, _ := read(t, resp); status != 200 || body != "a" || resp.ProtoMajor != 2 {
			t.Fatalf("got %d %q over %s", status, body, resp.Proto)
		}
		return resp.TLS.PeerCertificates[0].Subject.CommonName
	}
	if got := name(); got != "first" {
		t.Fatalf("certificate %q", got)
	}
	certificate(t, dir, "second")
	if err := g.Reload(cfg); err != nil {
		t.Fatal(err)
	}
	if got := name(); got != "second" {
		t.Fatalf("certificate %q after the reload", got)
	}
	if err := os.WriteFile(cfg.TLS.KeyFile, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := g.Reload(cfg); err == nil {
		t.Fatal("a broken key was taken")
	}
	if got := name(); got != "second" {
		t.Fatalf("certificate %q after a refused reload", got)
	}
}

func TestCertificateIsReplacedWhenItsFilesChange(t *testing.T) {
	dir := t.TempDir()
	cfg := testConfig(newInstance(t, "zone-a", say("a")))
	cfg.TLS = certificate(t, dir, "first")
	cfg.TLS.Poll = 10 * time.Millisecond
	g := start(t, cfg)
	serves := func(want string) {
		t.Helper()
		eventually.Nil(t, patience, func() error {
			conn, err := tls.Dial("tcp", g.addr, &tls.Config{InsecureSkipVerify: true})
			if err != nil {
				return err
			}
			defer conn.Close()
			if got := conn.ConnectionState().PeerCertificates[0].Subject.CommonName; got != want {
				return fmt.Errorf("certificate %q, want %q", got, want)
			}
			return nil
		})
	}
	serves("first")
	if got, least := g.metric(t, g.certificates.expiry.WithLabelValues()), float64(time.Now().Unix()); got < least {
		t.Errorf("expires at %v", got)
	}
	certificate(t, dir, "second")
	serves("second")
	if err := os.WriteFile(cfg.TLS.CertFile, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually.Nil(t, patience, func() error {
		if g.metric(t, g.certificates.reloads.WithLabelValues("refused")) == 0 {
			return errors.New("not refused yet")
		}
		return nil
	})
	serves("second")
	certificate(t, dir, "third")
	serves("third")
	for version, wanted := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		conn, err := tls.Dial("tcp", g.addr, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: version})
		if err == nil {
			_ = conn.Close()
		}
		if (err == nil) != wanted {
			t.Errorf("TLS %x: %v", version, err)
		}
	}
}
