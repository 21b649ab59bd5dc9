package pgproxy

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"time"
)

// idlePoll is how often it is looked whether a reload has turned tls.poll on.
const idlePoll = time.Minute

// filesSum stands for what is in the files that the TLS settings name.
type filesSum [sha256.Size]byte

// sumTLSFiles reads the files. It is taken before they are read for use, so that
// a change in between is seen the next time.
func sumTLSFiles(cfg *Config) (sum filesSum, err error) {
	h := sha256.New()
	var errs []error
	for _, f := range []struct{ field, path string }{
		{"tls.certFile", cfg.TLS.CertFile}, {"tls.keyFile", cfg.TLS.KeyFile}, {"serverTLS.caFile", cfg.ServerTLS.CAFile},
	} {
		if f.path == "" {
			continue
		}
		b, err := os.ReadFile(f.path)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.field, err))
		}
		h.Write(b)
		h.Write([]byte{0}) // PEM has none
	}
	h.Sum(sum[:0])
	return sum, errors.Join(errs...)
}

// loadTLS reads the files of the TLS settings.
func (l *live) loadTLS() error {
	var err0, err1, err2 error
	l.files, err0 = sumTLSFiles(&l.cfg)
	if err0 != nil {
		return err0
	}
	l.tls, err1 = loadClientTLS(l.cfg.TLS)
	l.serverTLS, err2 = loadServerTLS(l.cfg.ServerTLS)
	return errors.Join(err1, err2)
}

// watchCertificates takes certificates that are new on disk, until ctx ends.
// Connections that are open keep what they have.
func (p *Proxy) watchCertificates(ctx context.Context) {
	var refused string // what was said of the last files that were not taken
	for {
		poll := p.live.Load().cfg.TLS.Poll
		if poll <= 0 {
			poll = idlePoll
		}
		timer := time.NewTimer(poll)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		l := p.live.Load()
		if l.cfg.TLS.Poll <= 0 {
			continue
		}
		sum, err := sumTLSFiles(&l.cfg)
		if err == nil && sum == l.files {
			refused = ""
			continue
		}
		next := *l
		if err == nil {
			err = next.loadTLS()
		}
		if err != nil {
			// Once per broken file, not every few seconds.
			if what := fmt.Sprintf("%x %v", sum, err); what != refused {
				refused = what
				p.metrics.certificatesRefused.Add(1)
				p.log.Error("new certificate refused, the old one stays", "err", err)
			}
			continue
		}
		if p.live.CompareAndSwap(l, &next) { // else a reload has just read them
			refused = ""
			p.metrics.certificatesApplied.Add(1)
			p.log.Info("certificates replaced")
		}
	}
}
