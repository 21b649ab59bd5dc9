//go:build !linux

package zonenet

import (
	"context"
	"errors"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
)

var errOnlyLinux = errors.New("network namespaces exist on Linux only")

// Probe tells why zones cannot be network namespaces here; nil means they can.
func Probe() error { return errOnlyLinux }

// ProbeTUN tells why the forwarder cannot run here; nil means it can.
func ProbeTUN() error { return errOnlyLinux }

func probeNetem() error { return errOnlyLinux }

func namespacePath(string) string { return "" }

func doIn(string, func() error) error { return errOnlyLinux }

func (n *Network) ensureNamespaces(context.Context) error { return errOnlyLinux }
func (n *Network) deleteNamespaces(context.Context) error { return errOnlyLinux }
func (n *Network) setPort(int, bool) error                { return errOnlyLinux }
func (n *Network) portUp(int) (bool, error)               { return false, errOnlyLinux }
func (n *Network) applyNetem(Links) error                 { return errOnlyLinux }

// Forwarder carries the packets between the zones of a stack; it exists on
// Linux only.
type Forwarder struct{}

// NewForwarder fails: there is no forwarder on this system.
func NewForwarder(ForwarderConfig, *slog.Logger, prometheus.Registerer) (*Forwarder, error) {
	return nil, errOnlyLinux
}

// Run fails: there is no forwarder on this system.
func (f *Forwarder) Run(context.Context) error { return errOnlyLinux }

// Ready is never closed.
func (f *Forwarder) Ready() <-chan struct{} { return nil }

// Links returns no settings.
func (f *Forwarder) Links() Links { return nil }

// SetLinks fails: there is no forwarder on this system.
func (f *Forwarder) SetLinks(Links) error { return errOnlyLinux }
