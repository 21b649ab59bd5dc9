package dify

import (
	"encoding/json"
	"net/http"
	"strconv"
)

// Error is a failure in Dify's own form: its HTTP body is {code, message,
// status}, and in a stream it is the data of an "error" event.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	// Status is the HTTP status code.
	Status int `json:"status"`
	// RetryAfterSeconds, when not 0, becomes the Retry-After header.
	RetryAfterSeconds int `json:"-"`
}

// The errors that the gateway itself answers with.
var (
	ErrBadGateway       = Error{Code: "bad_gateway", Message: "The Dify instance that worked on this request went away. It may have been carried out in part.", Status: http.StatusBadGateway}
	ErrUnavailable      = Error{Code: "service_unavailable", Message: "No Dify instance can take this request now. It was not carried out; try again.", Status: http.StatusServiceUnavailable, RetryAfterSeconds: 1}
	ErrOverloaded       = Error{Code: "overloaded", Message: "All Dify instances are busy. The request was not carried out; try again.", Status: http.StatusServiceUnavailable, RetryAfterSeconds: 2}
	ErrAppBusy          = Error{Code: "too_many_requests", Message: "This app has as many requests in work and waiting as it may have. The request was not carried out; try again.", Status: http.StatusTooManyRequests, RetryAfterSeconds: 2}
	ErrTimeout          = Error{Code: "gateway_timeout", Message: "The Dify instance did not answer in time. The request may have been carried out.", Status: http.StatusGatewayTimeout}
	ErrTooLarge         = Error{Code: "request_entity_too_large", Message: "The request's body is larger than the gateway allows.", Status: http.StatusRequestEntityTooLarge}
	ErrBodyTimeout      = Error{Code: "request_timeout", Message: "The request's body did not arrive in time.", Status: http.StatusRequestTimeout}
	ErrBadBody          = Error{Code: "bad_request", Message: "The request's body could not be read.", Status: http.StatusBadRequest}
	ErrMethod           = Error{Code: "method_not_allowed", Message: "The gateway neither opens tunnels nor echoes requests.", Status: http.StatusMethodNotAllowed}
	ErrStreamCut        = Error{Code: "upstream_lost", Message: "The Dify instance went away before the answer was complete.", Status: http.StatusBadGateway}
	ErrStreamSilent     = Error{Code: "upstream_silent", Message: "The Dify instance stopped sending before the answer was complete.", Status: http.StatusGatewayTimeout}
	ErrNoContent        = Error{Code: "first_content_timeout", Message: "The Dify instance began to answer and sent no content in time. The request may still be running there.", Status: http.StatusGatewayTimeout}
	ErrConversationBusy = Error{Code: "conversation_busy", Message: "This conversation is at work on earlier messages. The request was not carried out; try again when they are answered.", Status: http.StatusTooManyRequests, RetryAfterSeconds: 2}
	ErrAnswerTooLarge   = Error{Code: "answer_too_large", Message: "The answer is larger than the gateway puts together; ask for it with response_mode streaming.", Status: http.StatusBadGateway}
	ErrDraining         = Error{Code: "gateway_restart", Message: "The gateway is being restarted and could not wait for the end of this answer.", Status: http.StatusServiceUnavailable, RetryAfterSeconds: 1}
)

// Error implements error.
func (e Error) Error() string { return e.Code }

// Write answers a request with e. Nothing may have been written before.
func (e Error) Write(w http.ResponseWriter) {
	body, err := json.Marshal(e)
	if err != nil { // strings and an int: cannot be
		body = []byte("{}")
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)+1))
	h.Set("Cache-Control", "no-store")
	if e.RetryAfterSeconds > 0 {
		h.Set("Retry-After", strconv.Itoa(e.RetryAfterSeconds))
	}
	w.WriteHeader(e.Status)
	_, _ = w.Write(append(body, '\n'))
}

// AppendEvent appends e to dst as Dify's "error" event, with the stream's
// identifiers.
func (e Error) AppendEvent(dst []byte, ids StreamIDs) []byte {
	body, err := json.Marshal(struct {
		Event string `json:"event"`
		StreamIDs
		Error
	}{"error", ids, e})
	if err != nil {
		return dst
	}
	dst = append(dst, "data: "...)
	dst = append(dst, body...)
	return append(dst, "\n\n"...)
}
