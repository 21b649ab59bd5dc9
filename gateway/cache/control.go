package cache

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Control is what a client's Cache-Control and Pragma ask of the cache (RFC 9111,
// RFC 5861). The zero Control asks for nothing.
type Control struct {
	// NoCache wants an answer of the instances; it is kept for others.
	NoCache bool
	// NoStore wants its request to leave no trace here.
	NoStore bool
	// OnlyIfCached wants no instance to be asked.
	OnlyIfCached bool
	// HasMaxAge tells that an answer may be no older than MaxAge.
	HasMaxAge bool
	MaxAge    time.Duration
	// HasStaleIfError tells that a stale answer may be no longer stale than
	// StaleIfError.
	HasStaleIfError bool
	StaleIfError    time.Duration
}

// ParseControl reads the headers of a request. What it does not know, or cannot
// read, it leaves out.
func ParseControl(h http.Header) Control {
	var c Control
	lines := h["Cache-Control"]
	if len(lines) == 0 {
		c.NoCache = strings.Contains(strings.ToLower(strings.Join(h["Pragma"], ",")), "no-cache")
		return c
	}
	for _, line := range lines {
		for part := range strings.SplitSeq(line, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
			switch strings.ToLower(name) {
			case "no-cache":
				c.NoCache = true
			case "no-store":
				c.NoStore = true
			case "only-if-cached":
				c.OnlyIfCached = true
			case "max-age":
				c.MaxAge, c.HasMaxAge = seconds(value)
			case "stale-if-error":
				c.StaleIfError, c.HasStaleIfError = seconds(value)
			}
		}
	}
	return c
}

// maxSeconds is what RFC 9111 lets a greater number stand for.
const maxSeconds = 1 << 31

func seconds(s string) (time.Duration, bool) {
	n, err := strconv.ParseUint(strings.Trim(s, `"`), 10, 64)
	if err != nil {
		return 0, false
	}
	return time.Duration(min(n, maxSeconds)) * time.Second, true
}

// Storable tells whether an answer may be kept: it is a plain 200 that sets no
// cookie and does not forbid it.
func Storable(status int, h http.Header) bool {
	if status != http.StatusOK || len(h["Set-Cookie"]) > 0 || len(h["Content-Range"]) > 0 {
		return false
	}
	if ce := h.Get("Content-Encoding"); ce != "" && !strings.EqualFold(ce, "identity") {
		return false
	}
	for _, line := range h["Vary"] {
		if strings.Contains(line, "*") {
			return false
		}
	}
	for _, line := range h["Cache-Control"] {
		line = strings.ToLower(line)
		if strings.Contains(line, "no-store") || strings.Contains(line, "private") || strings.Contains(line, "no-cache") {
			return false
		}
	}
	return true
}
