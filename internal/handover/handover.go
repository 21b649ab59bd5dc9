// Package handover passes the listening sockets of a running process to its
// successor, so that a restart never closes a port: no connection is refused,
// and none is lost in the accept queue of a socket that goes away, as it is
// when two sockets share a port with SO_REUSEPORT.
//
// The running process, the holder, serves a Unix socket. Its successor asks
// there for the listeners, which are passed with SCM_RIGHTS, gets ready with
// them, begins to accept, and only then tells the holder to stop accepting.
// Until that moment the holder goes on as if nothing had happened: a successor
// that fails or dies before changes nothing. A successor whose holder dies has
// the listeners already and goes on alone.
package handover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

// ErrTakenOver is what Run returns when a successor accepts the connections
// from now on. The process closes its listeners and ends its work.
var ErrTakenOver = errors.New("a successor has taken over")

const (
	// DefaultReadyTimeout is how long a successor may take to get ready.
	DefaultReadyTimeout = 2 * time.Minute
	// askTimeout bounds each question to a holder that only has to answer.
	askTimeout = 5 * time.Second
	// maxAsks is how often a successor asks holders that end meanwhile.
	maxAsks = 5
	// pollEvery is how often a successor looks whether it is ready.
	pollEvery = 10 * time.Millisecond
)

// Socket is one listening socket.
type Socket struct {
	// Name says what it is for; unique in its process.
	Name string `json:"name"`
	// Address is the host:port as it is configured. A successor whose
	// configuration says another one is refused.
	Address string `json:"address"`
}

// Options say how Open works.
type Options struct {
	// Path is the Unix socket; empty means that nothing is ever handed over.
	Path string
	// ReadyTimeout is how long a successor may take to get ready before it
	// gives up; zero means DefaultReadyTimeout.
	ReadyTimeout time.Duration
	// Logger receives what happens; nil discards it.
	Logger *slog.Logger
}

// Set is the listening sockets of one process.
type Set struct {
	path      string
	log       *slog.Logger
	limit     time.Duration
	sockets   []Socket
	listeners []*listener
	holder    *net.UnixConn // to the process that was here before; nil when there was none
	holderPID int

	accept    chan struct{} // closed when this process may accept
	takenOver chan struct{} // closed when a successor accepts
}

// listener accepts only once its set allows it.
type listener struct {
	*net.TCPListener
	accept <-chan struct{}
	closed chan struct{}
	once   sync.Once
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.accept:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	return l.TCPListener.Accept()
}

// Close implements net.Listener. It closes this process's descriptor; the port
// stays open as long as another process has one.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.TCPListener.Close()
}

// Open gets the sockets: from the process that holds opts.Path, when there is
// one, and by listening otherwise. Accept on the listeners waits until Run
// finds this process ready. Open starts nothing that goes on.
func Open(ctx context.Context, opts Options, sockets ...Socket) (*Set, error) {
	s := &Set{
		path: opts.Path, log: opts.Logger, limit: opts.ReadyTimeout, sockets: sockets,
		accept: make(chan struct{}), takenOver: make(chan struct{}),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.limit == 0 {
		s.limit = DefaultReadyTimeout
	}
	if len(sockets) > maxSockets {
		return nil, fmt.Errorf("hand-over: %d sockets are more than %d", len(sockets), maxSockets)
	}
	if s.path != "" {
		inherited, err := s.inherit(ctx)
		if err != nil {
			return nil, fmt.Errorf("hand-over at %s: %w", s.path, err)
		}
		if inherited {
			s.log.Info("has the listeners of the running process", "holder", s.holderPID)
			return s, nil
		}
	}
	var listen net.ListenConfig
	for _, w := range sockets {
		ln, err := listen.Listen(ctx, "tcp", w.Address)
		if err != nil {
			_ = s.Close()
			return nil, fmt.Errorf("listen for %s: %w", w.Name, err)
		}
		s.add(ln.(*net.TCPListener)) // what net makes for "tcp"
	}
	return s, nil
}

func (s *Set) add(ln *net.TCPListener) {
	s.listeners = append(s.listeners, &listener{TCPListener: ln, accept: s.accept, closed: make(chan struct{})})
}

// Inherited tells whether the sockets came from a running process.
func (s *Set) Inherited() bool { return s.holderPID != 0 }

// Listener returns the socket of that name, nil when Open was not asked for it.
func (s *Set) Listener(name string) net.Listener {
	for i, w := range s.sockets {
		if w.Name == name {
			return s.listeners[i]
		}
	}
	return nil
}

// TakenOver is closed when a successor accepts the connections.
func (s *Set) TakenOver() <-chan struct{} { return s.takenOver }

// Close closes what is still open.
func (s *Set) Close() error {
	for _, l := range s.listeners {
		_ = l.Close()
	}
	if s.holder != nil {
		_ = s.holder.Close()
	}
	return nil
}

// Run lets the listeners accept and then hands them to a successor that asks.
// A process that inherited them first waits until ready returns nil and takes
// over. Run returns nil when ctx ends, ErrTakenOver when a successor has taken
// over, and another error when this process cannot take over: then the one
// that runs goes on.
func (s *Set) Run(ctx context.Context, ready func() error) error {
	if s.holder != nil {
		if err := s.takeOver(ctx, ready); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("hand-over at %s: %w", s.path, err)
		}
	} else {
		close(s.accept)
	}
	if s.path == "" {
		<-ctx.Done()
		return nil
	}
	return s.hold(ctx)
}
