package dify

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"
)

// AppKey returns the bearer token of a request, Dify's app or data set key, or
// "". The key is a secret: it is never logged and never a label; KeyID is.
func AppKey(h http.Header) string {
	scheme, token, ok := strings.Cut(h.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// KeyID names a key without giving it away: the first 48 bits of its SHA-256,
// in hex, or "" for no key. Dify's keys are random, so it cannot be guessed back.
func KeyID(key string) string {
	if key == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:6])
}

// keyed are the first parts of service API paths at which Dify checks the key
// before anything else.
var keyed = map[string]bool{
	"parameters": true, "info": true, "meta": true, "site": true, "chat-messages": true, "completion-messages": true,
	"messages": true, "conversations": true, "workflows": true, "datasets": true, "files": true, "apps": true,
	"audio-to-text": true, "text-to-audio": true,
}

// ProvesKey tells whether a 2xx answer to the request shows that its key is a
// real one: made-up keys must not look real by asking for what needs none.
func ProvesKey(method, path string) bool {
	rest, ok := strings.CutPrefix(path, "/v1/")
	if !ok || method == http.MethodOptions {
		return false
	}
	first, _, _ := strings.Cut(rest, "/")
	return keyed[first]
}
