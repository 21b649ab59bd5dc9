package difysim

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
)

// arguments reads what chat, completion and workflow calls share.
func (a *API) arguments(q *request) (spec runSpec, stream bool, err error) {
	inputs := map[string]json.RawMessage{}
	if err := q.decode("inputs", true, &inputs); err != nil {
		return runSpec{}, false, err
	}
	mode := ""
	if err := q.decode("response_mode", false, &mode); err != nil {
		return runSpec{}, false, err
	}
	switch mode {
	case "", "blocking", "streaming":
	default:
		return runSpec{}, false, &apiError{
			Code: "invalid_param", Message: mode + " is not a valid choice", Status: http.StatusBadRequest, Params: "response_mode",
		}
	}
	sh, err := a.shapeOf(inputs)
	if err != nil {
		return runSpec{}, false, err
	}
	return runSpec{
		TaskID: uuid.NewString(), TenantID: q.tenantID, AppID: q.app.id, Mode: q.app.mode, WorkflowID: q.app.workflowID,
		UserID: q.user.id, Session: q.user.session, Inputs: inputs, Shape: sh, Created: time.Now().Unix(),
	}, mode == "streaming", nil
}

func (a *API) chatMessages(ctx context.Context, q *request) error {
	switch q.app.mode {
	case ModeChat, ModeAgentChat, ModeAdvancedChat:
	default:
		return errNotChat()
	}
	spec, stream, err := a.arguments(q)
	if err != nil {
		return err
	}
	if spec.Query, err = q.cleanText("query", true); err != nil {
		return err
	}
	if spec.Query == "" {
		return invalidParam("query is required")
	}
	if q.app.mode == ModeAgentChat && !stream {
		return invalidParam("Agent Chat App does not support blocking mode")
	}
	if spec.ConversationID, err = q.cleanText("conversation_id", false); err != nil {
		return err
	}
	if err := uuidText("conversation_id", spec.ConversationID); err != nil {
		return err
	}
	if spec.ConversationID != "" {
		if err := q.conversation(ctx, spec.ConversationID); err != nil {
			return err
		}
	}
	if err := q.createRecords(ctx, &spec); err != nil {
		return err
	}
	if q.app.mode == ModeAdvancedChat {
		spec.RunID = uuid.NewString()
	}
	return a.answer(ctx, q, spec, stream)
}

func (a *API) completionMessages(ctx context.Context, q *request) error {
	if q.app.mode != ModeCompletion {
		return errUnavailableApp()
	}
	spec, stream, err := a.arguments(q)
	if err != nil {
		return err
	}
	if spec.Query, err = q.cleanText("query", false); err != nil {
		return err
	}
	if err := q.createRecords(ctx, &spec); err != nil {
		return err
	}
	return a.answer(ctx, q, spec, stream)
}

func (a *API) runWorkflow(ctx context.Context, q *request) error {
	if q.app.mode != ModeWorkflow {
		return errNotWorkflow()
	}
	spec, stream, err := a.arguments(q)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(spec.Inputs["query"], &spec.Query); err != nil {
		spec.Query = "" // a workflow need not have a question
	}
	spec.RunID = uuid.NewString()
	return a.answer(ctx, q, spec, stream)
}

// createRecords commits the conversation and the message before generation, in
// two transactions, each read back, as Dify does.
func (q *request) createRecords(ctx context.Context, spec *runSpec) error {
	if q.db == nil { // the stub keeps nothing
		spec.MessageID, spec.ConversationID = uuid.NewString(), cmp.Or(spec.ConversationID, uuid.NewString())
		return nil
	}
	inputs, err := json.Marshal(spec.Inputs)
	if err != nil {
		return fmt.Errorf("inputs: %w", err)
	}
	if spec.ConversationID == "" {
		if _, err := q.db.First(ctx, `INSERT INTO conversations (app_id, mode, name, inputs, introduction, status, from_source, from_end_user_id) VALUES ($1::uuid, $2, 'New conversation', $3, '', 'normal', 'api', $4::uuid) RETURNING conversations.id`,
			[]any{spec.AppID, spec.Mode, string(inputs), spec.UserID}, &spec.ConversationID); err != nil {
			return err
		}
		if err := q.db.Commit(ctx); err != nil {
			return err
		}
		if err := q.conversation(ctx, spec.ConversationID); err != nil {
			return err
		}
		spec.NewName = shortName(spec.Query)
	}
	prompt, err := jsonText([]any{object{"role", "user", "text", spec.Query}})
	if err != nil {
		return fmt.Errorf("message: %w", err)
	}
	if _, err := q.db.First(ctx, `INSERT INTO messages (app_id, model_provider, model_id, conversation_id, inputs, query, message, answer, currency, from_source, from_end_user_id) VALUES ($1::uuid, $2, $3, $4::uuid, $5, $6, $7, '', 'USD', 'api', $8::uuid) RETURNING messages.id`,
		[]any{spec.AppID, embeddingProvider, modelName, spec.ConversationID, string(inputs), spec.Query, prompt, spec.UserID}, &spec.MessageID); err != nil {
		return err
	}
	if err := q.db.Commit(ctx); err != nil {
		return err
	}
	var created time.Time
	if _, err := q.db.First(ctx, "SELECT messages.created_at AS messages_created_at FROM messages WHERE messages.id = $1::uuid", []any{spec.MessageID}, &created); err != nil {
		return err
	}
	spec.Created = created.Unix()
	// The session is closed before the model is called, which frees its connection.
	return q.db.Rollback(ctx)
}

func shortName(query string) string {
	const limit = 40
	if utf8.RuneCountInString(query) <= limit {
		if query == "" {
			return "New conversation"
		}
		return query
	}
	return string([]rune(query)[:limit]) + "..."
}

// conversation checks that a conversation belongs to this app and user.
func (q *request) conversation(ctx context.Context, id string) error {
	if q.db == nil {
		return nil // the stub knows none and believes in all
	}
	var status string
	found, err := q.db.First(ctx, `SELECT conversations.status AS conversations_status
FROM conversations
WHERE conversations.id = $1::uuid AND conversations.app_id = $2::uuid AND conversations.from_source = 'api' AND conversations.from_end_user_id = $3::uuid AND conversations.is_deleted = false
 LIMIT 1`, []any{id, q.app.id, q.user.id}, &status)
	switch {
	case err != nil:
		return err
	case !found:
		return notFound("Conversation Not Exists.")
	case status != "normal":
		return &apiError{Code: "conversation_completed", Message: "The conversation has ended. Please start a new conversation.", Status: http.StatusBadRequest}
	}
	return nil
}

// answer runs the generation and writes it, whole or as a stream.
func (a *API) answer(ctx context.Context, q *request, spec runSpec, stream bool) error {
	if q.db != nil {
		q.db.Close()
	}
	if stream {
		return a.stream(ctx, q, spec)
	}
	res, err := a.generate(ctx, spec, nil)
	if err != nil {
		return err
	}
	if res.Failed != nil && (spec.RunID == "" || res.Workflow == nil) {
		return res.Failed
	}
	switch spec.Mode {
	case ModeWorkflow:
		return q.ok(object{"workflow_run_id", spec.RunID, "task_id", spec.TaskID, "data", blockingRun(res.Workflow)})
	case ModeCompletion:
		return q.ok(object{
			"event", "message", "task_id", spec.TaskID, "id", spec.MessageID, "message_id", spec.MessageID, "mode", spec.Mode,
			"answer", res.Answer, "metadata", metadataOf(res), "created_at", spec.Created,
		})
	default:
		return q.ok(object{
			"event", "message", "task_id", spec.TaskID, "id", spec.MessageID, "message_id", spec.MessageID,
			"conversation_id", spec.ConversationID, "mode", spec.Mode, "answer", res.Answer, "metadata", metadataOf(res),
			"created_at", spec.Created,
		})
	}
}

// blockingRun is what a blocking answer tells of a run: without the fields that
// only the event has.
func blockingRun(event object) object {
	var o object
	for i := 0; i+1 < len(event); i += 2 {
		switch event[i] {
		case "sequence_number", "created_by", "files":
		default:
			o = append(o, event[i], event[i+1])
		}
	}
	return o
}

func metadataOf(res result) object {
	if len(res.Resources) == 0 {
		return object{"usage", res.Usage}
	}
	return object{"usage", res.Usage, "retriever_resources", res.Resources}
}

// stream writes the events as they come, with pings, until the generation ends
// or the client goes away; then the generation goes on alone.
func (a *API) stream(ctx context.Context, q *request, spec runSpec) error {
	events := make(chan object)
	gone := make(chan struct{})
	done := make(chan struct{})
	defer close(gone)
	produce := a.generateHere
	if a.cfg.EventBus == BusPubSub && spec.RunID != "" {
		produce = a.generateInWorker
	}
	a.runs.Go(func() {
		defer close(done)
		err := produce(ctx, spec, func(ev object) error {
			select {
			case events <- ev:
				return nil
			case <-gone:
				return errAbandoned
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		if err != nil && ctx.Err() == nil && !errors.Is(err, errAbandoned) {
			a.log.Warn("generation failed", "task", spec.TaskID, "err", err.Error())
		}
	})
	h := q.w.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	q.w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(q.w)
	if err := rc.Flush(); err != nil {
		return nil //nolint:nilerr // the client is gone, there is nobody to tell
	}
	ping := time.NewTicker(a.cfg.Server.PingInterval)
	defer ping.Stop()
	write := func(frame []byte) bool {
		_, err := q.w.Write(frame)
		return err == nil && rc.Flush() == nil
	}
	for {
		select {
		case ev := <-events:
			raw, err := json.Marshal(ev)
			if err != nil {
				return fmt.Errorf("encode event: %w", err)
			}
			if !write(append(append([]byte("data: "), raw...), "\n\n"...)) {
				return nil
			}
		case <-ping.C:
			if !write([]byte("event: ping\n\n")) {
				return nil
			}
		case <-done:
			return nil
		case <-q.r.Context().Done():
			return nil
		case <-ctx.Done():
			// The instance dies: the stream ends in the middle, without a last chunk.
			panic(http.ErrAbortHandler)
		}
	}
}

func (a *API) generateHere(ctx context.Context, spec runSpec, out sink) error {
	_, err := a.generate(ctx, spec, out)
	return err
}

// stop sets the stop flag when the task belongs to this user; for any other task
// it succeeds without doing anything, as in Dify.
func (a *API) stop(ctx context.Context, q *request) error {
	task := q.r.PathValue("task")
	if a.stub != nil {
		a.stub.stop(task)
		return q.success()
	}
	owner, err := a.redis.Get(ctx, belongKey+task).Result()
	switch {
	case errors.Is(err, redis.Nil):
		return q.success()
	case err != nil:
		return fmt.Errorf("task owner: %w", err)
	}
	if owner == "end-user-"+q.user.id {
		if err := a.redis.SetEx(ctx, stoppedKey+task, 1, stoppedTTL).Err(); err != nil { //nolint:staticcheck // Dify sends SETEX, and the proxies should see it
			return fmt.Errorf("stop flag: %w", err)
		}
	}
	return q.success()
}

func (a *API) stopChat(ctx context.Context, q *request) error {
	switch q.app.mode {
	case ModeChat, ModeAgentChat, ModeAdvancedChat:
		return a.stop(ctx, q)
	}
	return errNotChat()
}

func (a *API) stopCompletion(ctx context.Context, q *request) error {
	if q.app.mode != ModeCompletion {
		return errUnavailableApp()
	}
	return a.stop(ctx, q)
}

func (a *API) stopWorkflow(ctx context.Context, q *request) error {
	if q.app.mode != ModeWorkflow {
		return errNotWorkflow()
	}
	return a.stop(ctx, q)
}
