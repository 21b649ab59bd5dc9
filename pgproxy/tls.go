package pgproxy

import (
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"hash"
	"os"
	"time"
)

// clientTLS is the certificate shown to clients and what channel binding needs
// of it.
type clientTLS struct {
	config *tls.Config
	// endpoint is the tls-server-end-point binding (RFC 5929).
	endpoint []byte
	expires  time.Time
}

func loadClientTLS(c ClientTLS) (*clientTLS, error) {
	if c.CertFile == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	var h hash.Hash
	switch leaf.SignatureAlgorithm {
	case x509.SHA384WithRSA, x509.ECDSAWithSHA384, x509.SHA384WithRSAPSS:
		h = sha512.New384()
	case x509.SHA512WithRSA, x509.ECDSAWithSHA512, x509.SHA512WithRSAPSS:
		h = sha512.New()
	default:
		h = sha256.New()
	}
	h.Write(leaf.Raw)
	return &clientTLS{
		config:   &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"postgresql"}},
		endpoint: h.Sum(nil), expires: leaf.NotAfter,
	}, nil
}

// loadServerTLS makes the configuration for connections to host; nil means no TLS.
func loadServerTLS(c ServerTLS) (func(host string) *tls.Config, error) {
	if c.Mode == "disable" {
		return func(string) *tls.Config { return nil }, nil
	}
	var roots *x509.CertPool
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("serverTLS.caFile: %w", err)
		}
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("serverTLS.caFile: %s has no certificate", c.CAFile)
		}
	}
	mode := c.Mode
	return func(host string) *tls.Config {
		t := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: host}
		switch mode {
		case "require":
			t.InsecureSkipVerify = true //nolint:gosec // the mode's documented meaning: encryption without identity
		case "verify-ca":
			t.InsecureSkipVerify = true //nolint:gosec // the chain is verified below, only the name is not
			t.VerifyConnection = func(cs tls.ConnectionState) error {
				opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
				for _, c := range cs.PeerCertificates[1:] {
					opts.Intermediates.AddCert(c)
				}
				_, err := cs.PeerCertificates[0].Verify(opts)
				return err
			}
		}
		return t
	}, nil
}
