package gateway

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// TLS serves clients over TLS 1.2 or 1.3, with HTTP/2 where they want it.
type TLS struct {
	// CertFile and KeyFile are the certificate with its chain and its key (PEM).
	CertFile string `yaml:"certFile"`
	KeyFile  string `yaml:"keyFile"`
	// Poll is how often the files are looked at. A new certificate serves new
	// connections at once; a file that is broken, or does not fit the other one
	// yet, changes nothing. Default 5s; 0 looks only at a reload.
	Poll time.Duration `yaml:"poll"`
}

// keyPair is a certificate as it lay in its files.
type keyPair struct {
	cert *tls.Certificate
	sum  [sha256.Size]byte // of both files
}

// loadKeyPair reads the files. The sum is returned with an error too when both
// could be read.
func loadKeyPair(cfg TLS) (keyPair, error) {
	cert, err := os.ReadFile(cfg.CertFile)
	if err != nil {
		return keyPair{}, fmt.Errorf("tls.certFile: %w", err)
	}
	key, err := os.ReadFile(cfg.KeyFile)
	if err != nil {
		return keyPair{}, fmt.Errorf("tls.keyFile: %w", err)
	}
	h := sha256.New()
	h.Write(cert)
	h.Write([]byte{0}) // PEM has none
	h.Write(key)
	pair := keyPair{}
	h.Sum(pair.sum[:0])
	c, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return pair, fmt.Errorf("tls: %w", err)
	}
	pair.cert = &c
	return pair, nil
}

// certificates holds what clients are served with.
type certificates struct {
	mu      sync.Mutex // one change at a time
	current atomic.Pointer[keyPair]
	expiry  *prometheus.GaugeVec
	reloads *prometheus.CounterVec
}

func newCertificates(reg prometheus.Registerer) (*certificates, error) {
	const ns, sub = "fournines", "gateway"
	c := &certificates{
		expiry: prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: ns, Subsystem: sub, Name: "certificate_expiry_timestamp_seconds",
			Help: "When the certificate that clients get is not valid any more, as Unix time; no series without TLS."}, []string{}),
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: "certificate_reloads_total",
			Help: "Certificates found new on disk, by outcome: applied or refused."}, []string{"outcome"}),
	}
	for _, m := range []prometheus.Collector{c.expiry, c.reloads} {
		if err := reg.Register(m); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// set serves pair from now on and tells whether it is another one.
func (c *certificates) set(pair keyPair) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.current.Swap(&pair)
	if pair.cert.Leaf != nil {
		c.expiry.WithLabelValues().Set(float64(pair.cert.Leaf.NotAfter.Unix()))
	}
	return old == nil || old.sum != pair.sum
}

// get implements tls.Config.GetCertificate.
func (c *certificates) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return c.current.Load().cert, nil
}

// watchCertificate looks at the files until ctx ends.
func (g *Gateway) watchCertificate(ctx context.Context) {
	var refused string // what was said of the last file that was not taken
	for {
		cfg := g.settings.Load().TLS
		poll := cfg.Poll
		if poll <= 0 {
			poll = time.Minute // a reload may turn it on
		}
		timer := time.NewTimer(poll)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		if cfg = g.settings.Load().TLS; cfg.Poll <= 0 {
			continue
		}
		pair, err := loadKeyPair(cfg)
		switch {
		case err != nil:
			// Once per broken file, not every few seconds.
			if what := fmt.Sprintf("%x %v", pair.sum, err); what != refused {
				refused = what
				g.certificates.reloads.WithLabelValues("refused").Inc()
				g.log.Error("new certificate refused, the old one stays", "err", err)
			}
		case pair.sum == g.certificates.current.Load().sum:
			refused = ""
		default:
			refused = ""
			g.certificates.set(pair)
			g.certificates.reloads.WithLabelValues("applied").Inc()
			g.log.Info("certificate replaced", "expires", pair.cert.Leaf.NotAfter)
		}
	}
}
