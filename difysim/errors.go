package difysim

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
)

// apiError is an answer in the form of Dify's errors.
type apiError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Status  int    `json:"status"`
	// Params names the wrong parameter where the request parser found it.
	Params string `json:"params,omitempty"`
}

func (e *apiError) Error() string { return fmt.Sprintf("%d %s: %s", e.Status, e.Code, e.Message) }

func invalidParam(format string, args ...any) *apiError {
	return &apiError{Code: "invalid_param", Message: fmt.Sprintf(format, args...), Status: http.StatusBadRequest}
}

func notFound(message string) *apiError {
	return &apiError{Code: "not_found", Message: message, Status: http.StatusNotFound}
}

func unauthorized(message string) *apiError {
	return &apiError{Code: "unauthorized", Message: message, Status: http.StatusUnauthorized}
}

func forbidden(message string) *apiError {
	return &apiError{Code: "forbidden", Message: message, Status: http.StatusForbidden}
}

func errNotChat() *apiError {
	return &apiError{Code: "not_chat_app", Message: "Please check if your app mode matches the right API route.", Status: http.StatusBadRequest}
}

func errNotWorkflow() *apiError {
	return &apiError{Code: "not_workflow_app", Message: "Please check if your app mode matches the right API route.", Status: http.StatusBadRequest}
}

func errUnavailableApp() *apiError {
	return &apiError{Code: "app_unavailable", Message: "App unavailable, please check your app configurations.", Status: http.StatusBadRequest}
}

func errInternal() *apiError {
	return &apiError{
		Code:    "internal_server_error",
		Message: "The server encountered an internal error and was unable to complete your request. Either the server is overloaded or there is an error in the application.",
		Status:  http.StatusInternalServerError,
	}
}

// asAPIError returns what a client may see of err: internal text stays inside.
func asAPIError(err error) *apiError {
	var e *apiError
	if errors.As(err, &e) {
		return e
	}
	return errInternal()
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode response: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, err = w.Write(append(body, '\n'))
	return err
}
