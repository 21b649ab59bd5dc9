package gateway

import "time"

// The values of Stream.Restart.
const (
	RestartBeforeContent = "beforeContent"
	RestartUnsent        = "unsent"
)

// Stream sets how event streams are treated.
type Stream struct {
	// Heartbeat is the silence after which the client gets a comment line;
	// 0 turns it off. Default 15s (Dify pings every 10s).
	Heartbeat time.Duration `yaml:"heartbeat"`
	// IdleTimeout is the silence after which an instance counts as lost.
	// Default 60s; at least twice Dify's ping interval makes sense.
	IdleTimeout time.Duration `yaml:"idleTimeout"`
	// FirstContentTimeout is how long a chat, completion or workflow that asked
	// for a stream waits for the first event that is not a ping, counted from
	// the moment an instance was asked. Default 2m, twice what people call
	// broken and more than a slow model thinks before its first token; 0 turns
	// it off.
	FirstContentTimeout time.Duration `yaml:"firstContentTimeout"`
	// Hold is how long the header of such an answer waits for that event, so
	// that an instance lost before it can still be answered with an HTTP
	// status. Default 2s; 0 sends the header at once.
	Hold time.Duration `yaml:"hold"`
	// Restart says when a chat stream whose instance died is started again on
	// another: "beforeContent" (default), as long as the client has seen no
	// event but pings; "unsent", only when the instance cannot have seen the
	// request.
	Restart string `yaml:"restart"`
	// StopOnDisconnect calls Dify's stop endpoint for the task of a stream that
	// nobody reads any more. Default true.
	StopOnDisconnect bool `yaml:"stopOnDisconnect"`
	// BlockingAsStream asks Dify for a stream where the client asked for a
	// blocking answer, and puts the events together. Default false.
	BlockingAsStream bool `yaml:"blockingAsStream"`
	// BlockingBytes bounds what is kept of one such answer. Default 8 MiB.
	BlockingBytes int `yaml:"blockingBytes"`
}

func defaultStream() Stream {
	return Stream{
		Heartbeat: 15 * time.Second, IdleTimeout: time.Minute,
		FirstContentTimeout: 2 * time.Minute, Hold: 2 * time.Second,
		Restart: RestartBeforeContent, StopOnDisconnect: true, BlockingBytes: 8 << 20,
	}
}

func (s *Stream) validate(bad func(field, format string, args ...any)) {
	atLeast := func(field string, d, least time.Duration) {
		if d < least {
			bad(field, "%v is less than %v", d, least)
		}
	}
	const ms = time.Millisecond
	atLeast("stream.idleTimeout", s.IdleTimeout, 100*ms)
	if s.Heartbeat != 0 {
		atLeast("stream.heartbeat", s.Heartbeat, 10*ms)
	}
	if s.FirstContentTimeout != 0 {
		atLeast("stream.firstContentTimeout", s.FirstContentTimeout, 100*ms)
	}
	if s.Hold != 0 {
		atLeast("stream.hold", s.Hold, ms)
		if s.Hold > time.Minute {
			bad("stream.hold", "%v is more than a minute: clients take a header that late for a dead server", s.Hold)
		}
	}
	if s.BlockingBytes < 1024 || s.BlockingBytes > 1<<30 {
		bad("stream.blockingBytes", "%d is not between 1024 and 1 GiB", s.BlockingBytes)
	}
	if s.Restart != RestartBeforeContent && s.Restart != RestartUnsent {
		bad("stream.restart", "%q is neither %s nor %s", s.Restart, RestartBeforeContent, RestartUnsent)
	}
}
