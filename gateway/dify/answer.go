package dify

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"

	"fournines/internal/sse"
)

// ErrAnswerSize says that an answer is larger than its Answer may hold.
var ErrAnswerSize = errors.New("the answer is too large to be put together")

// Answer puts the events of a stream together into what Dify would have answered
// to the same call in blocking mode. Write it the bytes of the stream; it is not
// safe for concurrent use.
type Answer struct {
	class      Class
	completion bool // of a completion app: there is no conversation
	max        int

	scan  sse.Scanner
	block []byte // of the event being read
	text  []byte
	ids   StreamIDs
	mode  string
	made  json.RawMessage // created_at
	meta  json.RawMessage
	data  json.RawMessage // of workflow_finished
	fault *Error
	done  bool
}

// NewAnswer returns an empty answer to a call of class c; completion says that
// the call was to a completion app. Text and events together are kept up to max
// bytes.
func NewAnswer(c Class, completion bool, max int) *Answer {
	mode := "chat"
	if completion {
		mode = "completion"
	}
	return &Answer{class: c, completion: completion, max: max, mode: mode}
}

// event is what is of interest in any event's data.
type event struct {
	Event string `json:"event"`
	StreamIDs
	Answer    string          `json:"answer"`
	CreatedAt json.RawMessage `json:"created_at"`
	Metadata  json.RawMessage `json:"metadata"`
	Data      json.RawMessage `json:"data"`
	Code      string          `json:"code"`
	Message   string          `json:"message"`
	Status    int             `json:"status"`
}

// Write takes the next bytes of the stream. It fails with ErrAnswerSize only.
func (a *Answer) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n, ev, ok := a.scan.Next(rest)
		if len(a.block)+len(a.text)+len(a.data)+n > a.max {
			return 0, ErrAnswerSize
		}
		a.block = append(a.block, rest[:n]...)
		rest = rest[n:]
		if ok {
			if ev.Data {
				a.event(string(ev.Type))
			}
			a.block = a.block[:0]
		}
	}
	return len(p), nil
}

// event takes in the whole event in a.block.
func (a *Answer) event(kind string) {
	switch kind {
	case "message", "agent_message", "message_replace", "message_end", "agent_thought", "workflow_started", "workflow_finished", "workflow_paused", "error":
	default:
		return // large ones are among these
	}
	var ev event
	if a.done || json.Unmarshal(eventData(a.block), &ev) != nil {
		return
	}
	a.note(&ev)
	switch kind {
	case "message", "agent_message":
		a.text = append(a.text, ev.Answer...)
		if kind == "agent_message" {
			a.mode = "agent-chat"
		}
	case "message_replace":
		a.text = append(a.text[:0], ev.Answer...)
	case "agent_thought":
		a.mode = "agent-chat"
	case "workflow_started":
		a.mode = "advanced-chat"
	case "message_end":
		a.meta = ev.Metadata
	case "workflow_finished", "workflow_paused":
		a.data = ev.Data
	case "error":
		if ev.Status < 400 || ev.Status > 599 {
			ev.Status = http.StatusInternalServerError
		}
		a.fault = &Error{Code: ev.Code, Message: ev.Message, Status: ev.Status}
	}
	a.done = Terminal(a.class, []byte(kind))
}

// note keeps the identifiers; the first that are given stay.
func (a *Answer) note(ev *event) {
	for _, f := range [...]struct {
		to   *string
		from string
	}{
		{&a.ids.TaskID, ev.TaskID},
		{&a.ids.MessageID, ev.MessageID},
		{&a.ids.ConversationID, ev.ConversationID},
		{&a.ids.WorkflowRunID, ev.WorkflowRunID},
	} {
		if *f.to == "" {
			*f.to = f.from
		}
	}
	if a.made == nil {
		a.made = ev.CreatedAt
	}
}

// eventData joins the data lines of an event block.
func eventData(block []byte) []byte {
	var data []byte
	for line := range bytes.FieldsFuncSeq(block, func(r rune) bool { return r == '\r' || r == '\n' }) {
		rest, ok := bytes.CutPrefix(line, []byte("data:"))
		if !ok {
			continue
		}
		rest = bytes.TrimPrefix(rest, []byte(" "))
		if data == nil {
			data = rest // the only one, as Dify writes it
			continue
		}
		data = append(append(bytes.Clone(data), '\n'), rest...)
	}
	return data
}

// workflowData are the members of workflow_finished that a blocking answer has.
var workflowData = [...]string{
	"id", "workflow_id", "status", "outputs", "error", "elapsed_time", "total_tokens", "total_steps", "created_at", "finished_at",
}

// Result returns the status and the JSON of the answer, and false when the
// stream has not come to its last event.
func (a *Answer) Result() (status int, body []byte, ok bool) {
	if !a.done {
		return 0, nil, false
	}
	var v any
	status = http.StatusOK
	switch {
	case a.fault != nil:
		status, v = a.fault.Status, a.fault
	case a.class == Workflow:
		var all map[string]json.RawMessage
		if json.Unmarshal(a.data, &all) != nil {
			return 0, nil, false
		}
		data := make(map[string]json.RawMessage, len(workflowData))
		for _, name := range workflowData {
			if raw, ok := all[name]; ok {
				data[name] = raw
			}
		}
		v = map[string]any{"workflow_run_id": a.ids.WorkflowRunID, "task_id": a.ids.TaskID, "data": data}
	default:
		if a.meta == nil {
			a.meta = json.RawMessage("{}")
		}
		m := map[string]any{
			"event": "message", "task_id": a.ids.TaskID, "id": a.ids.MessageID, "message_id": a.ids.MessageID,
			"mode": a.mode, "answer": string(a.text), "metadata": a.meta, "created_at": a.made,
		}
		if !a.completion {
			m["conversation_id"] = a.ids.ConversationID
		}
		v = m
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // Dify does not
	if enc.Encode(v) != nil {
		return 0, nil, false
	}
	return status, b.Bytes(), true
}
