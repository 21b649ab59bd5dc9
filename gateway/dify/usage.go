package dify

import (
	"bytes"
	"encoding/json"
)

// maxTokens is more than any one answer can have used.
const maxTokens = 1e9

// EventTokens reads out of the last event of a stream how many tokens the
// language models have used; see Tokens.
func EventTokens(block []byte) (int64, bool) {
	for line := range bytes.Lines(block) {
		if data, ok := bytes.CutPrefix(line, []byte("data:")); ok {
			return Tokens(data)
		}
	}
	return 0, false
}

// Tokens reads how many tokens were used out of a blocking answer or the data of
// a stream's last event: metadata.usage.total_tokens of chats and completions,
// data.total_tokens of workflows.
func Tokens(body []byte) (int64, bool) {
	var said struct {
		Metadata struct {
			Usage struct {
				TotalTokens *float64 `json:"total_tokens"`
			} `json:"usage"`
		} `json:"metadata"`
		Data struct {
			TotalTokens *float64 `json:"total_tokens"`
		} `json:"data"`
	}
	if json.Unmarshal(body, &said) != nil {
		return 0, false
	}
	n := said.Metadata.Usage.TotalTokens
	if n == nil {
		n = said.Data.TotalTokens
	}
	if n == nil || !(*n >= 0 && *n <= maxTokens) {
		return 0, false
	}
	return int64(*n), true
}

// ModelOutput tells whether an event of that type carries a piece of what a
// language model writes. Dify makes one of each piece that the model's provider
// sends, which is about a token.
func ModelOutput(eventType []byte) bool {
	switch string(eventType) {
	case "message", "agent_message", "text_chunk":
		return true
	}
	return false
}
