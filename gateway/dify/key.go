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
