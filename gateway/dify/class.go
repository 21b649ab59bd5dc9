// Package dify knows Dify's HTTP interface as far as a proxy in front of it
// must: which requests may be sent twice, which answer with a stream, how a
// stream ends, and what an error looks like. It does no I/O.
package dify

import (
	"slices"
	"strings"
)

// Class groups the requests that the gateway treats alike.
type Class uint8

// The classes. Other is everything unknown and is never sent twice.
const (
	Other    Class = iota
	Read           // GET, HEAD, OPTIONS: no effect
	Retrieve       // POST .../retrieve and hit-testing: a search; its only effect is a log row
	Stop           // POST .../stop: sets a flag, twice is as good as once
	Mutate         // DELETE, PUT and the POST and PATCH calls where the last one wins
	Chat           // chat-messages and completion-messages: a new message and a model call
	Workflow       // workflow runs: a new run, with whatever its nodes do
	Upload         // files: large bodies, each call makes a new file
	Ingest         // new documents, segments, data sets
	Console        // console and web app calls that change something and are none of the above
)

var classNames = [...]string{"other", "read", "retrieve", "stop", "mutate", "chat", "workflow", "upload", "ingest", "console"}

// ClassNames lists the names of all classes.
func ClassNames() []string { return slices.Clone(classNames[:]) }

// String returns the class's name, a bounded metric label.
func (c Class) String() string {
	if int(c) < len(classNames) {
		return classNames[c]
	}
	return classNames[Other]
}

// Idempotent tells whether sending the request twice is as good as once.
func (c Class) Idempotent() bool {
	return c == Read || c == Retrieve || c == Stop || c == Mutate
}

// Cacheable tells whether the answer depends on nothing but the request and
// the stored data.
func (c Class) Cacheable() bool { return c == Read || c == Retrieve }

// Streams tells whether the caller may ask for the answer as an event stream
// with response_mode.
func (c Class) Streams() bool { return c == Chat || c == Workflow }

// Completion tells whether a POST to path asks a completion app, which knows no
// conversations.
func Completion(path string) bool {
	return strings.HasSuffix(strings.TrimSuffix(path, "/"), "/completion-messages")
}

// Classify names the class of a request by method and URL path. It knows the
// service API (/v1), the web app's API (/api) and the console's
// (/console/api); a path it does not know, or one that is not in its plain
// form, is Other unless the method itself is safe or idempotent.
func Classify(method, path string) Class {
	switch method {
	case "GET", "HEAD", "OPTIONS":
		return Read
	case "DELETE", "PUT":
		return Mutate
	case "POST", "PATCH":
	default:
		return Other
	}
	rest, console, ok := trimPrefix(path)
	if !ok || strings.Contains(rest, "//") || strings.Contains(rest, "/.") {
		return Other
	}
	rest = strings.TrimSuffix(rest, "/")
	last := rest[strings.LastIndexByte(rest, '/')+1:]
	var c Class
	if method == "PATCH" {
		// PATCH is not idempotent in general; Dify's are: they set fields to given values.
		if strings.HasPrefix(rest, "datasets/") {
			return Mutate
		}
	} else {
		c = classifyPost(rest, last)
	}
	if c == Other && console {
		return Console
	}
	return c
}

func classifyPost(rest, last string) Class {
	switch last {
	case "chat-messages", "completion-messages":
		return Chat
	case "stop":
		if strings.Contains(rest, "chat-messages/") || strings.Contains(rest, "completion-messages/") || strings.Contains(rest, "workflows/") || strings.Contains(rest, "workflow-runs/") {
			return Stop
		}
	case "run":
		// workflows/run, workflows/{id}/run, .../workflows/draft/run and one node's run.
		if strings.Contains(rest, "workflows/") {
			return Workflow
		}
	case "upload", "audio-to-text", "remote-upload":
		return Upload
	case "feedbacks":
		return Mutate
	case "retrieve", "hit-testing":
		if strings.HasPrefix(rest, "datasets/") {
			return Retrieve
		}
	case "create_by_file", "create-by-file", "update_by_file", "update-by-file":
		return Upload
	case "create_by_text", "create-by-text", "update_by_text", "update-by-text", "segments", "datasets", "documents", "child_chunks":
		if rest == "datasets" || strings.HasPrefix(rest, "datasets/") {
			return Ingest
		}
	}
	return Other
}

func trimPrefix(path string) (rest string, console, ok bool) {
	if rest, ok = strings.CutPrefix(path, "/v1/"); ok {
		return rest, false, true
	}
	if rest, ok = strings.CutPrefix(path, "/console/api/"); ok {
		return rest, true, true
	}
	rest, ok = strings.CutPrefix(path, "/api/")
	return rest, true, ok
}
