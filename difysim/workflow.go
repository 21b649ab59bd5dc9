package difysim

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"fournines/difysim/sqlsession"
)

// node is a step of the one graph that the simulator knows.
type node struct{ id, kind, title string }

func (r *run) nodes() []node {
	last := node{"3", "end", "End"}
	if r.spec.Mode == ModeAdvancedChat {
		last = node{"3", "answer", "Answer"}
	}
	return []node{{"1", "start", "Start"}, {"2", "llm", "LLM"}, last}
}

// event begins an event of a run: that of a workflow, or of an advanced chat,
// which has the fields of both.
func (r *run) event(name string, data object) object {
	ev := object{"event", name}
	if r.spec.MessageID != "" {
		ev = append(ev, "conversation_id", r.spec.ConversationID, "message_id", r.spec.MessageID, "created_at", r.spec.Created)
	}
	return append(ev, "task_id", r.spec.TaskID, "workflow_run_id", r.spec.RunID, "data", data)
}

// workflow runs a workflow or an advanced chat: workflow_started, per node
// node_started and node_finished with the text between, workflow_finished, and
// for a chat message_end.
func (r *run) workflow(ctx context.Context) (result, error) {
	if err := r.own(ctx); err != nil {
		return r.brokenRun(ctx, err)
	}
	if r.spec.Shape.Error != "" && r.spec.MessageID != "" {
		return r.refused(ctx)
	}
	sequence, err := r.startRun(ctx)
	if err != nil {
		return r.brokenRun(ctx, err)
	}
	inputs := r.inputs()
	r.emit(r.event("workflow_started", object{
		"id", r.spec.RunID, "workflow_id", r.spec.WorkflowID, "sequence_number", sequence,
		"inputs", inputs, "created_at", r.spec.Created,
	}))
	var res result
	tokens, steps := 0, 0
	for i, n := range r.nodes() {
		steps++
		began := time.Now()
		execID, err := r.startNode(ctx, i+1, n)
		if err != nil {
			return r.brokenRun(ctx, err)
		}
		previous := any(nil)
		if i > 0 {
			previous = r.nodes()[i-1].id
		}
		r.emit(r.event("node_started", object{
			"id", execID, "node_id", n.id, "node_type", n.kind, "title", n.title, "index", i + 1,
			"predecessor_node_id", previous, "inputs", nil, "created_at", time.Now().Unix(), "extras", object{},
		}))
		status, failure, metadata := "succeeded", any(nil), any(nil)
		var outputs object
		switch n.kind {
		case "start":
			outputs = object{"sys.files", []any{}, "sys.user_id", r.spec.Session}
		case "llm":
			if r.spec.Mode == ModeAdvancedChat {
				res.Resources = r.sources(ctx)
			}
			res.Answer, tokens, err = r.llm(ctx)
			outputs = object{"text", res.Answer, "usage", usage(r.spec.Query, tokens, time.Since(r.start)), "finish_reason", "stop"}
			metadata = object{"total_tokens", promptTokens(r.spec.Query) + tokens, "total_price", "0.0001000", "currency", "USD"}
		case "answer":
			outputs = object{"answer", res.Answer}
		default:
			outputs = object{"text", res.Answer}
		}
		switch {
		case errors.Is(err, errStopped):
			res.Stopped = true
		case err != nil:
			return r.brokenRun(ctx, err)
		case n.kind == "llm" && r.spec.Shape.Error != "":
			status, failure = "failed", "The simulator was asked to fail with "+r.spec.Shape.Error+"."
			outputs = nil
		}
		if res.Stopped {
			break
		}
		if err := r.finishNode(ctx, execID, status, failure, outputs, time.Since(began)); err != nil {
			return r.brokenRun(ctx, err)
		}
		r.emit(r.event("node_finished", object{
			"id", execID, "node_id", n.id, "node_type", n.kind, "title", n.title, "index", i + 1,
			"predecessor_node_id", previous, "inputs", nil, "process_data", nil, "outputs", outputs,
			"status", status, "error", failure, "elapsed_time", time.Since(began).Seconds(),
			"execution_metadata", metadata, "created_at", began.Unix(), "finished_at", time.Now().Unix(), "files", []any{},
		}))
		if failure != nil {
			return r.finish(ctx, res, sequence, "failed", failure, steps, tokens)
		}
	}
	status := "succeeded"
	if res.Stopped {
		status = "stopped"
	}
	return r.finish(ctx, res, sequence, status, nil, steps, tokens)
}

// llm makes the text: text_chunk events of a workflow, message events of a chat.
func (r *run) llm(ctx context.Context) (string, int, error) {
	if r.spec.Shape.Error != "" {
		return "", 0, nil
	}
	return r.model(ctx, func(t string) {
		if r.spec.MessageID != "" {
			r.emit(r.chatEvent("message", "id", r.spec.MessageID, "answer", t))
			return
		}
		r.emit(r.event("text_chunk", object{"text", t}))
	})
}

// finish ends the run in the database and for the client.
func (r *run) finish(ctx context.Context, res result, sequence int, status string, failure any, steps, tokens int) (result, error) {
	outputs := object{"text", res.Answer}
	if r.spec.MessageID != "" {
		outputs = object{"answer", res.Answer}
	}
	total := promptTokens(r.spec.Query) + tokens
	if r.abandoned {
		return res, nil // the run stays "running", as Dify leaves it
	}
	if err := r.endRun(ctx, status, failure, outputs, total, steps); err != nil {
		return r.brokenRun(ctx, err)
	}
	res.Workflow = object{
		"id", r.spec.RunID, "workflow_id", r.spec.WorkflowID, "sequence_number", sequence, "status", status,
		"outputs", outputs, "error", failure, "elapsed_time", time.Since(r.start).Seconds(), "total_tokens", total,
		"total_steps", steps, "created_by", object{"id", r.spec.UserID, "user", r.spec.Session},
		"created_at", r.spec.Created, "finished_at", time.Now().Unix(), "files", []any{},
	}
	if r.spec.MessageID != "" {
		res.Usage = usage(r.spec.Query, tokens, time.Since(r.start))
		if err := r.saveMessage(ctx, res, tokens); err != nil {
			return r.brokenRun(ctx, err)
		}
	}
	r.emit(r.event("workflow_finished", res.Workflow))
	if r.spec.MessageID != "" {
		r.emit(r.chatEvent("message_end", "id", r.spec.MessageID, "metadata", metadataOf(res)))
	}
	return res, nil
}

// brokenRun ends a run that cannot go on.
func (r *run) brokenRun(ctx context.Context, cause error) (result, error) {
	if ctx.Err() == nil {
		if err := r.endRun(ctx, "failed", "internal error", nil, 0, 0); err != nil {
			cause = errors.Join(cause, err)
		}
	}
	return r.broken(ctx, cause)
}

func (r *run) inputs() object {
	o := object{}
	for _, k := range slices.Sorted(maps.Keys(r.spec.Inputs)) {
		o = append(o, k, r.spec.Inputs[k])
	}
	return append(o, "sys.files", []any{}, "sys.user_id", r.spec.Session)
}

func jsonText(v any) (string, error) {
	raw, err := json.Marshal(v)
	return string(raw), err
}

// startRun numbers the run as Dify 0.6.9 does: by MAX without a lock.
func (r *run) startRun(ctx context.Context) (int, error) {
	inputs, err := jsonText(r.inputs())
	if err != nil {
		return 0, err
	}
	kind := "workflow"
	if r.spec.MessageID != "" {
		kind = "chat"
	}
	var sequence int
	err = r.unit(ctx, func(s *sqlsession.Session) error {
		if _, err := s.First(ctx, `SELECT coalesce(max(workflow_runs.sequence_number), 0) AS max_1
FROM workflow_runs
WHERE workflow_runs.tenant_id = $1::uuid AND workflow_runs.app_id = $2::uuid`, []any{r.spec.TenantID, r.spec.AppID}, &sequence); err != nil {
			return err
		}
		sequence++
		if _, err := s.Exec(ctx, `INSERT INTO workflow_runs (id, tenant_id, app_id, sequence_number, workflow_id, type, triggered_from, version, graph, inputs, status, created_by_role, created_by) VALUES ($1::uuid, $2::uuid, $3::uuid, $4, $5::uuid, $6, 'app-run', 'simulator', '{}', $7, 'running', 'end_user', $8::uuid)`,
			r.spec.RunID, r.spec.TenantID, r.spec.AppID, sequence, r.spec.WorkflowID, kind, inputs, r.spec.UserID); err != nil {
			return err
		}
		if r.spec.MessageID == "" {
			return nil
		}
		_, err := s.Exec(ctx, "UPDATE messages SET workflow_run_id=$1::uuid WHERE messages.id = $2::uuid", r.spec.RunID, r.spec.MessageID)
		return err
	})
	return sequence, err
}

func (r *run) startNode(ctx context.Context, index int, n node) (string, error) {
	if r.stub != nil {
		return uuid.NewString(), nil
	}
	var id string
	err := r.unit(ctx, func(s *sqlsession.Session) error {
		_, err := s.First(ctx, `INSERT INTO workflow_node_executions (tenant_id, app_id, workflow_id, triggered_from, workflow_run_id, index, node_id, node_type, title, status, created_by_role, created_by) VALUES ($1::uuid, $2::uuid, $3::uuid, 'workflow-run', $4::uuid, $5, $6, $7, $8, 'running', 'end_user', $9::uuid) RETURNING workflow_node_executions.id`,
			[]any{r.spec.TenantID, r.spec.AppID, r.spec.WorkflowID, r.spec.RunID, index, n.id, n.kind, n.title, r.spec.UserID}, &id)
		return err
	})
	return id, err
}

func (r *run) finishNode(ctx context.Context, id, status string, failure, outputs any, took time.Duration) error {
	text, err := jsonText(outputs)
	if err != nil {
		return err
	}
	return r.unit(ctx, func(s *sqlsession.Session) error {
		_, err := s.Exec(ctx, "UPDATE workflow_node_executions SET status=$1, error=$2, outputs=$3, elapsed_time=$4, finished_at=CURRENT_TIMESTAMP WHERE workflow_node_executions.id = $5::uuid",
			status, failure, text, took.Seconds(), id)
		return err
	})
}

func (r *run) endRun(ctx context.Context, status string, failure, outputs any, tokens, steps int) error {
	text, err := jsonText(outputs)
	if err != nil {
		return err
	}
	return r.unit(ctx, func(s *sqlsession.Session) error {
		_, err := s.Exec(ctx, "UPDATE workflow_runs SET status=$1, outputs=$2, error=$3, elapsed_time=$4, total_tokens=$5, total_steps=$6, finished_at=CURRENT_TIMESTAMP WHERE workflow_runs.id = $7::uuid",
			status, text, failure, time.Since(r.start).Seconds(), tokens, steps, r.spec.RunID)
		return err
	})
}
