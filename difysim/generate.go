package difysim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"fournines/difysim/embed"
	"fournines/difysim/sqlsession"
)

// Keys and times of a running task in Redis, as in Dify.
const (
	belongKey  = "generate_task_belong:"
	stoppedKey = "generate_task_stopped:"
	belongTTL  = 1800 * time.Second
	stoppedTTL = 600 * time.Second
	stopCheck  = time.Second
)

var (
	// errStopped says that the stop flag was set.
	errStopped = errors.New("generation was stopped")
	// errAbandoned says that the client went away.
	errAbandoned = errors.New("client is gone")
)

// runSpec is a generation that is ready to run; with the pubsub event bus it
// travels to the worker in a Celery message.
type runSpec struct {
	TaskID         string                     `json:"task_id"`
	TenantID       string                     `json:"tenant_id"`
	AppID          string                     `json:"app_id"`
	Mode           string                     `json:"mode"`
	WorkflowID     string                     `json:"workflow_id"`
	UserID         string                     `json:"user_id"`
	Session        string                     `json:"session"`
	ConversationID string                     `json:"conversation_id"`
	NewName        string                     `json:"new_name"`
	MessageID      string                     `json:"message_id"`
	RunID          string                     `json:"run_id"`
	Query          string                     `json:"query"`
	Inputs         map[string]json.RawMessage `json:"inputs"`
	Shape          shape                      `json:"shape"`
	Created        int64                      `json:"created"`
}

// result is what a generation came to.
type result struct {
	Answer    string
	Resources []any
	Usage     object
	Workflow  object // the data of workflow_finished
	Stopped   bool
	Failed    *apiError
}

// sink takes the events of a generation in order; an error means nobody listens.
type sink func(event object) error

// run is one generation in progress.
type run struct {
	*backend
	spec      runSpec
	start     time.Time
	checked   time.Time // when the stop flag was last asked
	sink      sink
	abandoned bool
}

// generate runs a generation to its end. The error is one of the machinery; a
// failure of the pretended model is in the result.
func (b *backend) generate(ctx context.Context, spec runSpec, out sink) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, b.cfg.Server.MaxExecutionTime)
	defer cancel()
	r := &run{backend: b, spec: spec, start: time.Now(), sink: out}
	if b.stub != nil {
		defer b.stub.forget(spec.TaskID)
	}
	var res result
	var err error
	if spec.RunID != "" {
		res, err = r.workflow(ctx)
	} else {
		res, err = r.easyUI(ctx)
	}
	outcome := "ok"
	switch {
	case err != nil:
		outcome = "error"
	case res.Failed != nil:
		outcome = "failed"
	case r.abandoned:
		outcome = "abandoned"
	case res.Stopped:
		outcome = "stopped"
	}
	b.metrics.generations.WithLabelValues(spec.Mode, outcome).Inc()
	return res, err
}

func (r *run) emit(ev object) {
	if r.sink == nil || r.abandoned {
		return
	}
	if r.sink(ev) != nil {
		r.abandoned = true
	}
}

// stopped asks for the stop flag.
func (r *run) stopped(ctx context.Context) error {
	r.checked = time.Now()
	if r.stub != nil {
		return r.stub.stopped(r.spec.TaskID)
	}
	_, err := r.redis.Get(ctx, stoppedKey+r.spec.TaskID).Result()
	switch {
	case errors.Is(err, redis.Nil):
		return nil
	case err != nil:
		return fmt.Errorf("stop flag: %w", err)
	}
	return errStopped
}

// pause lets the pretended model think, asking for the stop flag every second.
func (r *run) pause(ctx context.Context, d time.Duration) error {
	if r.stub != nil {
		d = r.stub.stretch(d)
	}
	for end := time.Now().Add(d); ; {
		left := time.Until(end)
		if left <= 0 {
			return nil
		}
		if err := sleep(ctx, min(left, stopCheck-min(time.Since(r.checked), stopCheck-time.Millisecond))); err != nil {
			return err
		}
		if time.Since(r.checked) >= stopCheck {
			if err := r.stopped(ctx); err != nil {
				return err
			}
		}
	}
}

// model makes the tokens and hands each to each. It returns what was made, also
// when it was stopped.
func (r *run) model(ctx context.Context, each func(token string)) (string, int, error) {
	share := time.Duration(float64(r.spec.Shape.CPU) * r.cfg.CPU.FirstShare)
	if err := r.core.use(ctx, share); err != nil {
		return "", 0, err
	}
	if err := r.stopped(ctx); err != nil {
		return "", 0, err
	}
	if err := r.pause(ctx, r.spec.Shape.Delay); err != nil {
		return "", 0, err
	}
	tokens := answerTokens(r.spec.Query, r.spec.Shape.Tokens)
	perToken := (r.spec.Shape.CPU - share) / time.Duration(len(tokens))
	var answer strings.Builder
	for i, t := range tokens {
		if i > 0 {
			if err := r.pause(ctx, r.spec.Shape.PerToken); err != nil {
				return answer.String(), i, err
			}
		}
		if err := r.core.use(ctx, perToken); err != nil {
			return answer.String(), i, err
		}
		if err := r.stopped(ctx); err != nil {
			return answer.String(), i, err
		}
		answer.WriteString(t)
		each(t)
	}
	return answer.String(), len(tokens), nil
}

// chatEvent begins an event of a chat or completion with its common fields.
func (r *run) chatEvent(name string, rest ...any) object {
	ev := object{"event", name}
	if r.spec.ConversationID != "" && r.spec.Mode != ModeCompletion {
		ev = append(ev, "conversation_id", r.spec.ConversationID)
	}
	ev = append(ev, "message_id", r.spec.MessageID, "created_at", r.spec.Created, "task_id", r.spec.TaskID)
	return append(ev, rest...)
}

func (r *run) errorEvent(e *apiError) object {
	return r.chatEvent("error", "code", e.Code, "status", e.Status, "message", e.Message)
}

// messageEvent is the name of the event that carries answer text.
func (r *run) messageEvent() string {
	if r.spec.Mode == ModeAgentChat {
		return "agent_message"
	}
	return "message"
}

// easyUI is a chat, agent chat or completion: message events, then message_end.
func (r *run) easyUI(ctx context.Context) (result, error) {
	if err := r.own(ctx); err != nil {
		return r.broken(ctx, err)
	}
	var res result
	if r.spec.Shape.Error != "" {
		return r.refused(ctx)
	}
	if r.spec.Mode == ModeAgentChat {
		r.emit(r.chatEvent("agent_thought", "id", r.spec.MessageID, "position", 1, "thought", "", "observation", "", "tool", "",
			"tool_labels", object{}, "tool_input", "", "message_files", []any{}))
	}
	res.Resources = r.sources(ctx)
	answer, n, err := r.model(ctx, func(t string) {
		r.emit(r.chatEvent(r.messageEvent(), "id", r.spec.MessageID, "answer", t))
	})
	res.Answer = answer
	switch {
	case errors.Is(err, errStopped):
		res.Stopped = true
	case err != nil:
		return r.broken(ctx, err)
	}
	res.Usage = usage(r.spec.Query, n, time.Since(r.start))
	if r.abandoned {
		return res, nil // nobody reads the queue any more: Dify saves nothing
	}
	if err := r.saveMessage(ctx, res, n); err != nil {
		return r.broken(ctx, err)
	}
	r.emit(r.chatEvent("message_end", "id", r.spec.MessageID, "metadata", metadataOf(res)))
	return res, nil
}

// own notes in Redis whose task this is, so that only its user can stop it.
func (r *run) own(ctx context.Context) error {
	if r.stub != nil {
		r.stub.own(r.spec.TaskID)
		return nil
	}
	if err := r.redis.SetEx(ctx, belongKey+r.spec.TaskID, "end-user-"+r.spec.UserID, belongTTL).Err(); err != nil { //nolint:staticcheck // Dify sends SETEX, and the proxies should see it
		return fmt.Errorf("note the task's owner: %w", err)
	}
	return nil
}

// refused is a failure of the pretended model.
func (r *run) refused(ctx context.Context) (result, error) {
	status, _ := failureStatus(r.spec.Shape.Error)
	e := &apiError{Code: r.spec.Shape.Error, Message: "The simulator was asked to fail with " + r.spec.Shape.Error + ".", Status: status}
	if r.spec.MessageID != "" {
		if err := r.markMessage(ctx, e.Message); err != nil {
			return r.broken(ctx, err)
		}
	}
	r.emit(r.errorEvent(e))
	return result{Failed: e}, nil
}

// broken ends a generation that cannot go on because a server it needs is away.
func (r *run) broken(ctx context.Context, cause error) (result, error) {
	if ctx.Err() == nil && r.spec.MessageID != "" {
		if err := r.markMessage(ctx, "internal error"); err != nil {
			cause = errors.Join(cause, err)
		}
	}
	e := errInternal()
	r.emit(r.errorEvent(e))
	return result{Failed: e}, cause
}

func (r *run) markMessage(ctx context.Context, text string) error {
	return r.unit(ctx, func(s *sqlsession.Session) error {
		_, err := s.Exec(ctx, "UPDATE messages SET status='error', error=$1, updated_at=CURRENT_TIMESTAMP WHERE messages.id = $2::uuid", text, r.spec.MessageID)
		return err
	})
}

// unit is one unit of work: committed when do succeeds. The stub, which keeps
// nothing, does not do it.
func (b *backend) unit(ctx context.Context, do func(s *sqlsession.Session) error) error {
	if b.stub != nil {
		return nil
	}
	s := b.db.Session()
	defer s.Close()
	if err := do(s); err != nil {
		return err
	}
	return s.Commit(ctx)
}

func (r *run) saveMessage(ctx context.Context, res result, tokens int) error {
	meta, err := json.Marshal(metadataOf(res))
	if err != nil {
		return fmt.Errorf("message metadata: %w", err)
	}
	return r.unit(ctx, func(s *sqlsession.Session) error {
		var id string
		found, err := s.First(ctx, `SELECT messages.id AS messages_id
FROM messages
WHERE messages.id = $1::uuid
 LIMIT 1`, []any{r.spec.MessageID}, &id)
		if err != nil {
			return err
		}
		if !found {
			return fmt.Errorf("message %s is not in the database", r.spec.MessageID)
		}
		if _, err := s.Exec(ctx, `UPDATE messages SET message_tokens=$1, answer=$2, answer_tokens=$3, provider_response_latency=$4, total_price=$5, message_metadata=$6, updated_at=CURRENT_TIMESTAMP WHERE messages.id = $7::uuid`,
			promptTokens(r.spec.Query), res.Answer, tokens, time.Since(r.start).Seconds(), 0.0001, string(meta), r.spec.MessageID); err != nil {
			return err
		}
		if r.spec.NewName != "" {
			_, err = s.Exec(ctx, "UPDATE conversations SET name=$1, updated_at=CURRENT_TIMESTAMP WHERE conversations.id = $2::uuid", r.spec.NewName, r.spec.ConversationID)
		} else {
			_, err = s.Exec(ctx, "UPDATE conversations SET updated_at=CURRENT_TIMESTAMP WHERE conversations.id = $1::uuid", r.spec.ConversationID)
		}
		return err
	})
}

// sources retrieves from the app's datasets. A failure leaves the chat without
// sources; where Dify would fail it, the drills want to see the chat itself.
func (r *run) sources(ctx context.Context) []any {
	ids := r.spec.Shape.DatasetIDs
	if len(ids) == 0 {
		err := r.unit(ctx, func(s *sqlsession.Session) error {
			return s.Rows(ctx, `SELECT app_dataset_joins.dataset_id AS app_dataset_joins_dataset_id
FROM app_dataset_joins
WHERE app_dataset_joins.app_id = $1::uuid`, []any{r.spec.AppID}, func(scan func(...any) error) error {
				var id string
				if err := scan(&id); err != nil {
					return err
				}
				ids = append(ids, id)
				return nil
			})
		})
		if err != nil {
			r.log.Warn("datasets of the app are unknown", "err", err.Error())
			return nil
		}
	}
	var out []any
	for _, id := range ids {
		found, err := r.search(ctx, searchRequest{
			tenantID: r.spec.TenantID, datasetID: id, query: r.spec.Query, topK: 2, threshold: 0,
			source: "app", appID: r.spec.AppID, userID: r.spec.UserID,
		})
		if err != nil {
			r.log.Warn("retrieval in a chat failed, going on without", "dataset", id, "err", err.Error())
			continue
		}
		for _, rec := range found.records {
			out = append(out, object{
				"position", len(out) + 1, "dataset_id", id, "dataset_name", found.datasetName,
				"document_id", rec.documentID, "document_name", rec.documentName, "data_source_type", rec.dataSourceType,
				"segment_id", rec.segmentID, "retriever_from", "api", "score", rec.score, "content", rec.content,
			})
		}
	}
	return out
}

// modelName is what the simulator reports where Dify names a model.
const modelName = embed.Name
