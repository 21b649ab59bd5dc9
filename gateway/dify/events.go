package dify

import (
	"bytes"
	"encoding/json"
)

// EventPing is the type of the frame that Dify sends about every ten seconds.
const EventPing = "ping"

// Content tells whether an event of that type shows the caller something: any
// event with data, and any type but ping.
func Content(eventType []byte, data bool) bool {
	if string(eventType) == EventPing {
		return false
	}
	return data || len(eventType) > 0
}

// Terminal tells whether an event of that type is the last one of a stream of
// class c.
func Terminal(c Class, eventType []byte) bool {
	switch string(eventType) {
	case "error":
		return true
	case "message_end":
		return c == Chat
	case "workflow_finished", "workflow_paused":
		return c == Workflow
	}
	return false
}

// StreamIDs are the identifiers that the events of one stream carry; an error
// event repeats them, as Dify's own does.
type StreamIDs struct {
	TaskID         string `json:"task_id,omitempty"`
	MessageID      string `json:"message_id,omitempty"`
	ConversationID string `json:"conversation_id,omitempty"`
	WorkflowRunID  string `json:"workflow_run_id,omitempty"`
}

// ParseIDs reads the identifiers out of one whole event block. A block without
// them, or with anything unexpected in it, gives empty ones.
func ParseIDs(block []byte) StreamIDs {
	var ids StreamIDs
	for line := range bytes.Lines(block) {
		data, ok := bytes.CutPrefix(line, []byte("data:"))
		if !ok {
			continue
		}
		if json.Unmarshal(data, &ids) != nil {
			return StreamIDs{}
		}
		break
	}
	return ids
}
