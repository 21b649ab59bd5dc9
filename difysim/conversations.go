package difysim

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"github.com/google/uuid"
)

const maxPage = 100

func (a *API) conversations(ctx context.Context, q *request) error {
	if err := chatOnly(q); err != nil {
		return err
	}
	limit, err := q.number("limit", 20, 1, maxPage)
	if err != nil {
		return err
	}
	last := q.r.URL.Query().Get("last_id")
	if err := uuidText("last_id", last); err != nil {
		return err
	}
	const columns = `SELECT conversations.id AS conversations_id, conversations.name AS conversations_name, conversations.inputs AS conversations_inputs, conversations.status AS conversations_status, coalesce(conversations.introduction, '') AS conversations_introduction, conversations.created_at AS conversations_created_at
FROM conversations
WHERE conversations.is_deleted = false AND conversations.app_id = $1::uuid AND conversations.from_source = 'api' AND conversations.from_end_user_id = $2::uuid`
	args := []any{q.app.id, q.user.id}
	sql := columns
	if last != "" {
		var created string
		found, err := q.db.First(ctx, `SELECT conversations.created_at::text AS conversations_created_at
FROM conversations
WHERE conversations.id = $1::uuid AND conversations.app_id = $2::uuid AND conversations.from_end_user_id = $3::uuid
 LIMIT 1`, []any{last, q.app.id, q.user.id}, &created)
		if err != nil {
			return err
		}
		if !found {
			return notFound("Last Conversation Not Exists.")
		}
		sql += " AND (conversations.created_at, conversations.id) < ($3::timestamp, $4::uuid)"
		args = append(args, created, last)
	}
	sql += " ORDER BY conversations.created_at DESC, conversations.id DESC"
	sql += limitClause(limit + 1)
	data := []any{}
	err = q.db.Rows(ctx, sql, args, func(scan func(...any) error) error {
		var id, name, status, intro string
		var inputs *string
		var created time.Time
		if err := scan(&id, &name, &inputs, &status, &intro, &created); err != nil {
			return err
		}
		data = append(data, object{"id", id, "name", name, "inputs", jsonColumn(inputs, "{}"), "status", status, "introduction", intro, "created_at", created.Unix()})
		return nil
	})
	if err != nil {
		return err
	}
	return q.ok(page(limit, data))
}

func chatOnly(q *request) error {
	switch q.app.mode {
	case ModeChat, ModeAgentChat, ModeAdvancedChat:
		return nil
	}
	return errNotChat()
}

func page(limit int, data []any) object {
	more := len(data) > limit
	if more {
		data = data[:limit]
	}
	return object{"limit", limit, "has_more", more, "data", data}
}

func jsonColumn(s *string, empty string) json.RawMessage {
	if s == nil || !json.Valid([]byte(*s)) {
		return json.RawMessage(empty)
	}
	return json.RawMessage(*s)
}

func (a *API) deleteConversation(ctx context.Context, q *request) error {
	if err := chatOnly(q); err != nil {
		return err
	}
	id, err := q.pathUUID("conversation")
	if err != nil {
		return err
	}
	if err := q.conversation(ctx, id); err != nil {
		return err
	}
	if _, err := q.db.Exec(ctx, "UPDATE conversations SET is_deleted=true, updated_at=CURRENT_TIMESTAMP WHERE conversations.id = $1::uuid", id); err != nil {
		return err
	}
	if err := q.db.Commit(ctx); err != nil {
		return err
	}
	return q.success()
}

func (a *API) renameConversation(ctx context.Context, q *request) error {
	if err := chatOnly(q); err != nil {
		return err
	}
	id, err := q.pathUUID("conversation")
	if err != nil {
		return err
	}
	name, err := q.cleanText("name", false)
	if err != nil {
		return err
	}
	auto := false
	if err := q.decode("auto_generate", false, &auto); err != nil {
		return err
	}
	if err := q.conversation(ctx, id); err != nil {
		return err
	}
	if auto || name == "" {
		if _, err := q.db.First(ctx, `SELECT messages.query AS messages_query
FROM messages
WHERE messages.conversation_id = $1::uuid ORDER BY messages.created_at ASC
 LIMIT 1`, []any{id}, &name); err != nil {
			return err
		}
		name = shortName(name)
	}
	if len(name) > 255 {
		return invalidParam("name is longer than 255 characters")
	}
	var inputs *string
	var created time.Time
	if _, err := q.db.First(ctx, "UPDATE conversations SET name=$1, updated_at=CURRENT_TIMESTAMP WHERE conversations.id = $2::uuid RETURNING conversations.inputs, conversations.created_at",
		[]any{name, id}, &inputs, &created); err != nil {
		return err
	}
	if err := q.db.Commit(ctx); err != nil {
		return err
	}
	return q.ok(object{"id", id, "name", name, "inputs", jsonColumn(inputs, "{}"), "status", "normal", "introduction", "", "created_at", created.Unix()})
}

func (a *API) messages(ctx context.Context, q *request) error {
	if err := chatOnly(q); err != nil {
		return err
	}
	limit, err := q.number("limit", 20, 1, maxPage)
	if err != nil {
		return err
	}
	query := q.r.URL.Query()
	id, first := query.Get("conversation_id"), query.Get("first_id")
	if id == "" {
		return &apiError{Code: "invalid_param", Message: "Missing required parameter in the query string", Status: http.StatusBadRequest, Params: "conversation_id"}
	}
	if err := uuidText("conversation_id", id); err != nil {
		return err
	}
	if err := uuidText("first_id", first); err != nil {
		return err
	}
	if err := q.conversation(ctx, id); err != nil {
		return err
	}
	sql := `SELECT messages.id AS messages_id, messages.inputs AS messages_inputs, messages.query AS messages_query, messages.answer AS messages_answer, messages.status AS messages_status, messages.error AS messages_error, messages.message_metadata AS messages_message_metadata, messages.created_at AS messages_created_at, (SELECT message_feedbacks.rating FROM message_feedbacks WHERE message_feedbacks.message_id = messages.id AND message_feedbacks.from_source = 'user' LIMIT 1) AS rating
FROM messages
WHERE messages.conversation_id = $1::uuid`
	args := []any{id}
	if first != "" {
		var created string
		found, err := q.db.First(ctx, "SELECT messages.created_at::text AS messages_created_at FROM messages WHERE messages.conversation_id = $1::uuid AND messages.id = $2::uuid LIMIT 1", []any{id, first}, &created)
		if err != nil {
			return err
		}
		if !found {
			return notFound("First Message Not Exists.")
		}
		sql += " AND (messages.created_at, messages.id) < ($2::timestamp, $3::uuid)"
		args = append(args, created, first)
	}
	sql += " ORDER BY messages.created_at DESC, messages.id DESC" + limitClause(limit+1)
	data := []any{}
	err = q.db.Rows(ctx, sql, args, func(scan func(...any) error) error {
		var mid, text, answer, status string
		var inputs, failure, meta, rating *string
		var created time.Time
		if err := scan(&mid, &inputs, &text, &answer, &status, &failure, &meta, &created, &rating); err != nil {
			return err
		}
		var feedback any
		if rating != nil {
			feedback = object{"rating", *rating}
		}
		var m struct {
			Resources json.RawMessage `json:"retriever_resources"`
		}
		if meta != nil {
			_ = json.Unmarshal([]byte(*meta), &m) // a row without it has no sources
		}
		if m.Resources == nil {
			m.Resources = json.RawMessage("[]")
		}
		data = append(data, object{
			"id", mid, "conversation_id", id, "inputs", jsonColumn(inputs, "{}"), "query", text, "answer", answer,
			"message_files", []any{}, "feedback", feedback, "retriever_resources", m.Resources,
			"created_at", created.Unix(), "agent_thoughts", []any{}, "status", status, "error", failure,
		})
		return nil
	})
	if err != nil {
		return err
	}
	more := len(data) > limit
	data = data[:min(limit, len(data))]
	slices.Reverse(data) // the newest page, told oldest first
	return q.ok(object{"limit", limit, "has_more", more, "data", data})
}

// message checks that a message belongs to this app and user, and returns its
// conversation.
func (q *request) message(ctx context.Context, id string) (conversation string, err error) {
	found, err := q.db.First(ctx, `SELECT messages.conversation_id AS messages_conversation_id
FROM messages
WHERE messages.id = $1::uuid AND messages.app_id = $2::uuid AND messages.from_source = 'api' AND messages.from_end_user_id = $3::uuid
 LIMIT 1`, []any{id, q.app.id, q.user.id}, &conversation)
	if err != nil {
		return "", err
	}
	if !found {
		return "", notFound("Message Not Exists.")
	}
	return conversation, nil
}

func (a *API) feedback(ctx context.Context, q *request) error {
	id, err := q.pathUUID("message")
	if err != nil {
		return err
	}
	rating, err := q.cleanText("rating", false)
	if err != nil {
		return err
	}
	switch rating {
	case "", "like", "dislike":
	default:
		return &apiError{Code: "invalid_param", Message: rating + " is not a valid choice", Status: http.StatusBadRequest, Params: "rating"}
	}
	conversation, err := q.message(ctx, id)
	if err != nil {
		return err
	}
	if _, err := q.db.Exec(ctx, "DELETE FROM message_feedbacks WHERE message_feedbacks.message_id = $1::uuid AND message_feedbacks.from_source = 'user'", id); err != nil {
		return err
	}
	if rating != "" {
		if _, err := q.db.Exec(ctx, "INSERT INTO message_feedbacks (app_id, conversation_id, message_id, rating, from_source, from_end_user_id) VALUES ($1::uuid, $2::uuid, $3::uuid, $4, 'user', $5::uuid)",
			q.app.id, conversation, id, rating, q.user.id); err != nil {
			return err
		}
	}
	if err := q.db.Commit(ctx); err != nil {
		return err
	}
	return q.success()
}

func (a *API) suggested(ctx context.Context, q *request) error {
	if err := chatOnly(q); err != nil {
		return err
	}
	id, err := q.pathUUID("message")
	if err != nil {
		return err
	}
	if _, err := q.message(ctx, id); err != nil {
		return err
	}
	return q.ok(object{"result", "success", "data", []any{"What else is there to know?", "Why is that so?", "Can you give an example?"}})
}

func (a *API) workflowRun(ctx context.Context, q *request) error {
	if q.app.mode != ModeWorkflow {
		return errNotWorkflow()
	}
	id := q.r.PathValue("run")
	if _, err := uuid.Parse(id); err != nil {
		return notFound("Workflow run not found.")
	}
	var workflow, status string
	var inputs, outputs, failure *string
	var elapsed float64
	var tokens, steps int
	var created time.Time
	var finished *time.Time
	found, err := q.db.First(ctx, `SELECT workflow_runs.workflow_id AS workflow_runs_workflow_id, workflow_runs.status AS workflow_runs_status, workflow_runs.inputs AS workflow_runs_inputs, workflow_runs.outputs AS workflow_runs_outputs, workflow_runs.error AS workflow_runs_error, workflow_runs.elapsed_time AS workflow_runs_elapsed_time, workflow_runs.total_tokens AS workflow_runs_total_tokens, workflow_runs.total_steps AS workflow_runs_total_steps, workflow_runs.created_at AS workflow_runs_created_at, workflow_runs.finished_at AS workflow_runs_finished_at
FROM workflow_runs
WHERE workflow_runs.id = $1::uuid AND workflow_runs.app_id = $2::uuid
 LIMIT 1`, []any{id, q.app.id}, &workflow, &status, &inputs, &outputs, &failure, &elapsed, &tokens, &steps, &created, &finished)
	if err != nil {
		return err
	}
	if !found {
		return notFound("Workflow run not found.")
	}
	var end any
	if finished != nil {
		end = finished.Unix()
	}
	return q.ok(object{
		"id", id, "workflow_id", workflow, "status", status, "inputs", deref(inputs), "outputs", jsonColumn(outputs, "null"), "error", failure,
		"total_steps", steps, "total_tokens", tokens, "created_at", created.Unix(), "finished_at", end, "elapsed_time", elapsed,
	})
}

func (a *API) parameters(_ context.Context, q *request) error {
	off := object{"enabled", false}
	return q.ok(object{
		"opening_statement", "", "suggested_questions", []any{}, "suggested_questions_after_answer", off,
		"speech_to_text", off, "text_to_speech", off, "retriever_resource", object{"enabled", true}, "annotation_reply", off,
		"more_like_this", off, "user_input_form", []any{}, "sensitive_word_avoidance", off,
		"file_upload", object{"image", object{"enabled", false, "number_limits", 3, "detail", "high", "transfer_methods", []any{"remote_url", "local_file"}}},
		"system_parameters", object{"image_file_size_limit", "10"},
	})
}

func (a *API) info(_ context.Context, q *request) error {
	return q.ok(object{"name", q.app.name, "description", q.app.description, "tags", []any{}})
}

func (a *API) meta(_ context.Context, q *request) error {
	return q.ok(object{"tool_icons", object{}})
}
