package gateway

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// certificate writes a self-signed one for 127.0.0.1.
func certificate(t *testing.T, dir, name string) TLS {
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
	out := TLS{CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem")}
	for file, block := range map[string]*pem.Block{out.CertFile: {Type: "CERTIFICATE", Bytes: der}, out.KeyFile: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
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
