package dify

import (
	"encoding/json"
	"strings"
)

// Retrieval returns the data set that a request to the service API searches, in
// lower case, and whether it is such a request: POST /v1/datasets/{id}/retrieve,
// or hit-testing as older versions of Dify call it. Dify 0.6.9 has neither there.
func Retrieval(method, path string) (dataset string, ok bool) {
	if method != "POST" {
		return "", false
	}
	rest, ok := strings.CutPrefix(path, "/v1/datasets/")
	if !ok {
		return "", false
	}
	id, verb, _ := strings.Cut(rest, "/")
	if !isUUID(id) || verb != "retrieve" && verb != "hit-testing" {
		return "", false
	}
	return strings.ToLower(id), true
}

// harmless are the parts of paths behind "datasets/" whose POSTs change nothing
// that a search finds.
var harmless = map[string]bool{
	"init": true, "tags": true, "indexing-estimate": true, "external": true, "metadata": true, "notion-indexing-estimate": true,
}

// KnowledgeWrite tells whether a request may change what a search finds, and in
// which data set, in lower case; "" is any of them. It knows the service API and
// the console's, and takes what it does not know for a write.
func KnowledgeWrite(method, path string) (dataset string, writes bool) {
	switch method {
	case "POST", "PUT", "PATCH", "DELETE":
	default:
		return "", false
	}
	rest, ok := strings.CutPrefix(path, "/v1/")
	if !ok {
		if rest, ok = strings.CutPrefix(path, "/console/api/"); !ok {
			return "", false
		}
		if strings.HasPrefix(rest, "rag/pipelines/") {
			return "", true // runs of a pipeline make documents
		}
	}
	if rest, ok = strings.CutPrefix(rest, "datasets"); !ok {
		return "", false
	}
	rest = strings.TrimLeft(rest, "/")
	id, verb, _ := strings.Cut(rest, "/")
	switch {
	case rest == "", harmless[id]: // a new data set, or a word about all of them
		return "", false
	case strings.Contains(path, "//"), strings.Contains(path, "/."), !isUUID(id):
		return "", true
	case method == "POST" && (verb == "retrieve" || verb == "hit-testing" || verb == "external-hit-testing"):
		return "", false
	}
	return strings.ToLower(id), true
}

// isUUID tells whether s is in the form that Dify's routes take.
func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if c != '-' {
				return false
			}
		case c >= '0' && c <= '9', c >= 'a' && c <= 'f', c >= 'A' && c <= 'F':
		default:
			return false
		}
	}
	return true
}

// IndexingPath returns where to ask for the indexing of the documents that the
// answer to a write tells of, "" when it tells of none. path is the write's.
func IndexingPath(path, dataset string, answer []byte) string {
	var said struct {
		Batch string `json:"batch"`
	}
	if json.Unmarshal(answer, &said) != nil || said.Batch == "" || len(said.Batch) > maxBatch {
		return ""
	}
	for i := range len(said.Batch) {
		if c := said.Batch[i]; (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' && c != '_' {
			return ""
		}
	}
	if strings.HasPrefix(path, "/v1/") {
		return "/v1/datasets/" + dataset + "/documents/" + said.Batch + "/indexing-status"
	}
	return "/console/api/datasets/" + dataset + "/batch/" + said.Batch + "/indexing-status"
}

// maxBatch bounds the name of a batch; Dify's have 20 digits.
const maxBatch = 64

// IndexingOver reads the answer to a question about an indexing: whether none of
// its documents is on its way any more.
func IndexingOver(answer []byte) (over, ok bool) {
	var said struct {
		Data []struct {
			Status string `json:"indexing_status"`
		} `json:"data"`
	}
	if json.Unmarshal(answer, &said) != nil || said.Data == nil {
		return false, false
	}
	for _, d := range said.Data {
		switch d.Status {
		case "completed", "error", "paused":
		default:
			return false, true
		}
	}
	return true, true
}
