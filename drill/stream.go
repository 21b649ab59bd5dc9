package drill

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// StreamEnd says how an event stream ended.
type StreamEnd string

// The ends of a stream.
const (
	// StreamComplete streams ended after their last event.
	StreamComplete StreamEnd = "complete"
	// StreamErrorEvent streams ended with Dify's error event: the client knows
	// that the answer is not whole, and why.
	StreamErrorEvent StreamEnd = "errorEvent"
	// StreamCut streams broke off without a word.
	StreamCut StreamEnd = "cut"
	// StreamMalformed streams broke Dify's protocol.
	StreamMalformed StreamEnd = "malformed"
	// StreamRefused streams never began: another status, or no answer.
	StreamRefused StreamEnd = "refused"
	// StreamOpen streams were going well when the load ended.
	StreamOpen StreamEnd = "open"
)

var (
	errStreamCut   = errors.New("stream cut")
	errStreamError = errors.New("stream error event")
)

// malformed is a breach of Dify's protocol.
type malformed string

func (m malformed) Error() string { return "malformed stream: " + string(m) }

// streamReader follows one of Dify's event streams and holds it to the
// protocol: frames of "data: " with JSON, or "event: ping", or comments, each
// closed by an empty line; events of one task, in Dify's order; exactly one
// last event, and nothing behind it.
type streamReader struct {
	first   time.Time // the first event with content
	code    string    // of the error event
	chunks  int       // events that carried text
	last    string    // the event that ended the stream, "" before it
	task    string
	frame   []string
	flow    bool // it began with workflow_started
	flowEnd bool // and had its workflow_finished
}

// readStream reads a stream to its end; the error says what is wrong with it.
// chunks, when not 0, is how many events with text a whole answer has.
func (s *streamReader) readStream(body io.Reader, chunks int) error {
	scanner := bufio.NewScanner(body)
	scanner.Buffer(make([]byte, 4<<10), 4<<20)
	for scanner.Scan() {
		line := strings.TrimSuffix(scanner.Text(), "\r")
		if line != "" {
			s.frame = append(s.frame, line)
			continue
		}
		frame := s.frame
		s.frame = s.frame[:0]
		if err := s.take(frame); err != nil {
			return err
		}
	}
	err := scanner.Err()
	switch {
	case s.last == "error":
		return errStreamError
	case s.last != "":
		if chunks > 0 && s.chunks != chunks {
			return malformed(fmt.Sprintf("%d events with text, not %d", s.chunks, chunks))
		}
		return nil // it has all been said, whatever became of the connection
	case err != nil:
		return err
	case len(s.frame) > 0:
		return malformed("it ends within a frame")
	}
	return errStreamCut
}

// take reads one frame.
func (s *streamReader) take(lines []string) error {
	for _, line := range lines {
		data, isData := strings.CutPrefix(line, "data: ")
		switch {
		case strings.HasPrefix(line, ":"), line == "event: ping":
		case !isData:
			return malformed(fmt.Sprintf("line %.40q", line))
		case len(lines) > 1:
			return malformed("a frame of more than one line")
		default:
			return s.event(data)
		}
	}
	return nil
}

func (s *streamReader) event(data string) error {
	var e struct {
		Event string `json:"event"`
		Code  string `json:"code"`
		Task  string `json:"task_id"`
	}
	if err := json.Unmarshal([]byte(data), &e); err != nil {
		return malformed("an event is not JSON")
	}
	if e.Event == "ping" {
		return nil
	}
	if s.last != "" {
		return malformed(e.Event + " after " + s.last)
	}
	if e.Task != "" {
		if s.task != "" && e.Task != s.task {
			return malformed("events of two tasks")
		}
		s.task = e.Task
	}
	if e.Event == "error" {
		s.last, s.code = e.Event, e.Code
		return nil
	}
	if s.first.IsZero() {
		s.first = time.Now()
		s.flow = e.Event == "workflow_started"
	} else if e.Event == "workflow_started" {
		return malformed("workflow_started in the middle")
	}
	switch e.Event {
	case "message", "agent_message", "text_chunk":
		s.chunks++
	case "workflow_finished":
		if !s.flow {
			return malformed("workflow_finished without workflow_started")
		}
		s.flowEnd = true
	case "message_end":
		if s.flow && !s.flowEnd {
			return malformed("message_end before workflow_finished")
		}
		s.last = e.Event
	}
	return nil
}

// endOf names the end that readStream's error stands for. ctx is that of the
// request: a stream that its own load broke off was well until then.
func endOf(ctx context.Context, err error) StreamEnd {
	var broken malformed
	switch {
	case err == nil:
		return StreamComplete
	case errors.Is(err, errStreamError):
		return StreamErrorEvent
	case errors.As(err, &broken):
		return StreamMalformed
	case errors.Is(ctx.Err(), context.Canceled):
		return StreamOpen
	}
	return StreamCut
}
