package gateway

import (
	"net/http"
	"time"

	"fournines/gateway/dify"
)

// maxKept bounds the pings that wait with a held header.
const maxKept = 1 << 10

// hold is a stream's header that the client has not got yet. Dify answers 200
// at once and may fail before its first word; as long as the header is here,
// such a failure is still an HTTP status, and a restart elsewhere may even end
// in an ordinary answer. Everything is guarded by the sink's lock.
type hold struct {
	on     bool
	since  time.Time
	status int
	header http.Header
	kept   []byte // pings and comments that came meanwhile
}

// holds tells whether the header of an event stream with that status waits for
// its first content.
func (x *exchange) holds(status int) bool {
	return x.set.Stream.Hold > 0 && x.class.Streams() && status == http.StatusOK
}

// keepLocked takes p, which is no content, along with the header; false means
// that the header has to go out now.
func (s *sink) keepLocked(p []byte, boundary bool) bool {
	if s.content.Load() || !boundary || len(s.held.kept)+len(p) > maxKept {
		return false
	}
	s.held.kept = append(s.held.kept, p...)
	return true
}

// openLocked sends the header and what was kept with it; the next flush takes
// them to the client.
func (s *sink) openLocked() {
	s.held.on = false
	s.x.commit(s.held.status, s.held.header)
	if kept := s.held.kept; len(kept) > 0 {
		s.held.kept = nil
		_ = s.writeLocked(kept, true, time.Now())
	}
}

// open sends a header that is still held, at once.
func (s *sink) open() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held.on {
		s.openLocked()
		if s.err == nil {
			s.err = s.x.flush()
		}
	}
}

// drop gives up the stream for an ordinary answer, and tells whether that is
// still possible.
func (s *sink) drop() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.held.on {
		return false
	}
	s.held = hold{}
	s.closed = true
	return true
}

// follow makes up the attempt that the client hears now.
func (s *sink) follow(up *upstream) {
	s.mu.Lock()
	s.x.heard(up)
	if s.held.on {
		s.held.status, s.held.header = up.resp.StatusCode, up.resp.Header
	}
	s.mu.Unlock()
	s.asked.Store(int64(s.x.asking.Sub(s.start)))
	s.lastRead.Store(max(1, int64(time.Since(s.start))))
	s.cancel.Store(&up.cancel)
}

// streamHeader makes the instance's header one of an event stream that passes
// other proxies unbuffered.
func streamHeader(h http.Header) {
	h.Del("Content-Length")
	h["X-Accel-Buffering"] = []string{"no"}
	if _, ok := h["Cache-Control"]; !ok {
		h["Cache-Control"] = []string{"no-cache"}
	}
}

// firstContentLimit is how long this request's instance may take to its first
// content; 0 is no limit.
func (x *exchange) firstContentLimit() time.Duration {
	if x.class.Streams() && x.asked.Mode == dify.Streaming {
		return x.set.Stream.FirstContentTimeout
	}
	return 0
}

// mayLeaveSilent tells whether a request is given to another instance after the
// first one sent nothing in time, and nothing but pings to the client. A silent
// instance is not dead: it may be at work, its task has not been named yet and
// so cannot be stopped. Closing the connection makes Dify give it up at its
// next ping. What remains is a model call for nothing and, if the message
// begins a conversation, a conversation that nobody knows; in a conversation
// that exists two runs could meet, and they would break it.
func (x *exchange) mayLeaveSilent() bool {
	return x.mayRestart() && x.asked.Conversation == "" && len(x.tried) > 0 &&
		x.g.pool.Another(x.tried[len(x.tried)-1], x.tried)
}
