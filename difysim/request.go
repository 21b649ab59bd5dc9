package difysim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"fournines/difysim/sqlsession"
)

// maxBody bounds a JSON body; files go another way.
const maxBody = 16 << 20

// request is one call with what its key and user stand for.
type request struct {
	w  http.ResponseWriter
	r  *http.Request
	db *sqlsession.Session

	body     map[string]json.RawMessage
	tenantID string
	app      appRow
	user     endUser
}

type appRow struct {
	id, tenantID, name, description, mode, status, workflowID string
	enableAPI                                                 bool
}

type endUser struct{ id, session string }

// userFrom says where a route's user argument is.
type userFrom int

const (
	userNone userFrom = iota
	userInQuery
	userInBody
	userInForm // the handler reads the form and asks for the user itself
)

// token checks the Authorization header as Dify does and notes the key's use:
// one SELECT, one UPDATE and a COMMIT on every call.
func (q *request) token(ctx context.Context, scope string) (appID, tenantID string, err error) {
	header := q.r.Header.Get("Authorization")
	scheme, key, ok := strings.Cut(header, " ")
	if !ok {
		return "", "", unauthorized("Authorization header must be provided and start with 'Bearer'")
	}
	if !strings.EqualFold(scheme, "bearer") {
		return "", "", unauthorized("Authorization scheme must be 'Bearer'")
	}
	key = strings.TrimSpace(key)
	if strings.ContainsRune(key, 0) {
		return "", "", unauthorized("Access token is invalid")
	}
	var id string
	var app, tenant *string
	found, err := q.db.First(ctx, `SELECT api_tokens.id AS api_tokens_id, api_tokens.app_id AS api_tokens_app_id, api_tokens.tenant_id AS api_tokens_tenant_id
FROM api_tokens
WHERE api_tokens.token = $1 AND api_tokens.type = $2
 LIMIT 1`, []any{key, scope}, &id, &app, &tenant)
	if err != nil {
		return "", "", err
	}
	if !found {
		return "", "", unauthorized("Access token is invalid")
	}
	if _, err := q.db.Exec(ctx, "UPDATE api_tokens SET last_used_at=$1::timestamp WHERE api_tokens.id = $2::uuid", stamp(time.Now()), id); err != nil {
		return "", "", err
	}
	if err := q.db.Commit(ctx); err != nil {
		return "", "", err
	}
	return deref(app), deref(tenant), nil
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// stamp writes a time as Python's datetime does.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000") }

// withApp lets a handler in with an app key, and with the end user when the
// route has one.
func (a *API) withApp(where userFrom, h handlerFunc) handlerFunc {
	return func(ctx context.Context, q *request) error {
		appID, _, err := q.token(ctx, "app")
		if err != nil {
			return err
		}
		found, err := q.db.First(ctx, `SELECT apps.id AS apps_id, apps.tenant_id AS apps_tenant_id, apps.name AS apps_name, apps.description AS apps_description, apps.mode AS apps_mode, apps.status AS apps_status, apps.enable_api AS apps_enable_api, coalesce(apps.workflow_id::text, '') AS apps_workflow_id
FROM apps
WHERE apps.id = $1::uuid
 LIMIT 1`, []any{appID}, &q.app.id, &q.app.tenantID, &q.app.name, &q.app.description, &q.app.mode, &q.app.status, &q.app.enableAPI, &q.app.workflowID)
		if err != nil {
			return err
		}
		switch {
		case !found:
			return forbidden("The app no longer exists.")
		case q.app.status != "normal":
			return forbidden("The app's status is abnormal.")
		case !q.app.enableAPI:
			return forbidden("The app's API service has been disabled.")
		}
		q.tenantID = q.app.tenantID
		if err := q.checkTenant(ctx); err != nil {
			return err
		}
		var user string
		switch where {
		case userNone, userInForm:
			return h(ctx, q)
		case userInQuery:
			user = q.r.URL.Query().Get("user")
		case userInBody:
			if err := q.readBody(); err != nil {
				return err
			}
			user = q.text("user")
			if user == "" {
				return invalidParam("Arg user must be provided.")
			}
		}
		if err := q.endUser(ctx, user); err != nil {
			return err
		}
		return h(ctx, q)
	}
}

// withDatasets lets a handler in with a dataset key.
func (a *API) withDatasets(h handlerFunc) handlerFunc {
	return func(ctx context.Context, q *request) error {
		_, tenant, err := q.token(ctx, "dataset")
		if err != nil {
			return err
		}
		q.tenantID = tenant
		if err := q.checkTenant(ctx); err != nil {
			return err
		}
		for _, name := range []string{"dataset", "document", "segment"} {
			v := q.r.PathValue(name)
			if v == "" || strings.HasSuffix(q.r.Pattern, "indexing-status") && name == "document" {
				continue
			}
			if _, err := uuid.Parse(v); err != nil {
				return notFound("The requested URL was not found on the server. If you entered the URL manually please check your spelling and try again.")
			}
		}
		return h(ctx, q)
	}
}

func (q *request) checkTenant(ctx context.Context) error {
	var status string
	found, err := q.db.First(ctx, `SELECT tenants.status AS tenants_status
FROM tenants
WHERE tenants.id = $1::uuid
 LIMIT 1`, []any{q.tenantID}, &status)
	switch {
	case err != nil:
		return err
	case !found:
		return unauthorized("Tenant does not exist.")
	case status == "archive":
		return forbidden("The workspace's status is archived.")
	}
	return nil
}

// endUser gets or creates the end user of a session, without a lock, as Dify
// does: two first calls at once make two rows.
func (q *request) endUser(ctx context.Context, session string) error {
	if session == "" {
		session = "DEFAULT-USER"
	}
	if len(session) > 255 || strings.ContainsRune(session, 0) {
		return invalidParam("user is too long or has illegal characters")
	}
	q.user.session = session
	found, err := q.db.First(ctx, `SELECT end_users.id AS end_users_id
FROM end_users
WHERE end_users.tenant_id = $1::uuid AND end_users.app_id = $2::uuid AND end_users.session_id = $3 AND end_users.type = 'service_api'
ORDER BY end_users.created_at, end_users.id
 LIMIT 1`, []any{q.tenantID, q.app.id, session}, &q.user.id)
	if err != nil || found {
		return err
	}
	if _, err := q.db.First(ctx, `INSERT INTO end_users (tenant_id, app_id, type, is_anonymous, session_id) VALUES ($1::uuid, $2::uuid, 'service_api', $3, $4) RETURNING end_users.id`,
		[]any{q.tenantID, q.app.id, session == "DEFAULT-USER", session}, &q.user.id); err != nil {
		return err
	}
	return q.db.Commit(ctx)
}

// readBody reads the JSON object of the request.
func (q *request) readBody() error {
	kind, _, err := mime.ParseMediaType(q.r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" && !strings.HasSuffix(kind, "+json") {
		return &apiError{
			Code:    "unsupported_media_type",
			Message: "Did not attempt to load JSON data because the request Content-Type was not 'application/json'.",
			Status:  http.StatusUnsupportedMediaType,
		}
	}
	raw, err := io.ReadAll(http.MaxBytesReader(q.w, q.r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return &apiError{Code: "request_entity_too_large", Message: "The data value transmitted exceeds the capacity limit.", Status: http.StatusRequestEntityTooLarge}
	}
	if err != nil {
		return &apiError{Code: "bad_request", Message: "The browser (or proxy) sent a request that this server could not understand.", Status: http.StatusBadRequest}
	}
	if err := json.Unmarshal(raw, &q.body); err != nil || q.body == nil {
		return &apiError{Code: "bad_request", Message: "Invalid JSON payload received or JSON payload is empty.", Status: http.StatusBadRequest}
	}
	return nil
}

// text returns a text argument, or the text of a number, or "".
func (q *request) text(name string) string {
	var s string
	raw, ok := q.body[name]
	if !ok || string(raw) == "null" {
		return ""
	}
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	return strings.TrimSpace(string(raw))
}

// missing is the request parser's complaint.
func missing(name string) *apiError {
	return &apiError{Code: "invalid_param", Message: "Missing required parameter in the JSON body", Status: http.StatusBadRequest, Params: name}
}

func (q *request) has(name string) bool {
	raw, ok := q.body[name]
	return ok && string(raw) != "null"
}

// decode reads an argument of any shape into out; required ones must be there.
func (q *request) decode(name string, required bool, out any) error {
	if !q.has(name) {
		if required {
			return missing(name)
		}
		return nil
	}
	if err := json.Unmarshal(q.body[name], out); err != nil {
		return &apiError{Code: "invalid_param", Message: fmt.Sprintf("%s has the wrong type", name), Status: http.StatusBadRequest, Params: name}
	}
	return nil
}

// cleanText reads a required or optional text that PostgreSQL can store.
func (q *request) cleanText(name string, required bool) (string, error) {
	var s string
	if err := q.decode(name, required, &s); err != nil {
		return "", err
	}
	return strings.ReplaceAll(s, "\x00", ""), nil
}

// uuidText checks an identifier as Dify's uuid_value does; "" passes.
func uuidText(name, v string) error {
	if v == "" {
		return nil
	}
	if _, err := uuid.Parse(v); err != nil || len(v) != 36 {
		return &apiError{Code: "invalid_param", Message: fmt.Sprintf("%s is not a valid uuid.", v), Status: http.StatusBadRequest, Params: name}
	}
	return nil
}

// number reads a query parameter within its range.
func (q *request) number(name string, fallback, lo, hi int) (int, error) {
	v := q.r.URL.Query().Get(name)
	if v == "" {
		return fallback, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < lo || n > hi {
		return 0, &apiError{
			Code: "invalid_param", Message: fmt.Sprintf("Invalid argument: %s must be within the range %d - %d", v, lo, hi),
			Status: http.StatusBadRequest, Params: name,
		}
	}
	return n, nil
}

// pathUUID reads an identifier of the path.
func (q *request) pathUUID(name string) (string, error) {
	v := q.r.PathValue(name)
	if _, err := uuid.Parse(v); err != nil {
		return "", notFound("The requested URL was not found on the server. If you entered the URL manually please check your spelling and try again.")
	}
	return v, nil
}

func (q *request) ok(v any) error { return writeJSON(q.w, http.StatusOK, v) }

func (q *request) success() error { return q.ok(object{"result", "success"}) }
