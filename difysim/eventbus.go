package difysim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// The queue and task by which streams of workflows run in the worker from Dify
// 1.13 on, and the channel on which their events come back. Pub/sub delivers at
// most once: a worker that dies leaves the stream silent until it times out.
const (
	workflowQueue  = "workflow_based_app_execution"
	workflowTask   = "tasks.app_generate.workflow_execute_task.workflow_based_app_execution_task"
	eventChannel   = "channel:"
	busEnd         = "end"
	busEventPrefix = "event:"
)

// generateInWorker hands the run to the worker and relays its events.
func (a *API) generateInWorker(ctx context.Context, spec runSpec, out sink) error {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Server.MaxExecutionTime)
	defer cancel()
	sub := a.redis.Subscribe(ctx, eventChannel+spec.TaskID)
	defer sub.Close()
	// The subscription must stand before the task is sent, or early events are lost.
	if _, err := sub.Receive(ctx); err != nil {
		return a.busBroken(spec, out, fmt.Errorf("subscribe to events: %w", err))
	}
	if _, err := a.producer.Delay(ctx, workflowQueue, workflowTask, spec); err != nil {
		return a.busBroken(spec, out, err)
	}
	messages := sub.Channel()
	for {
		select {
		case m, ok := <-messages:
			if !ok {
				return a.busBroken(spec, out, errors.New("event channel was closed"))
			}
			if m.Payload == busEnd {
				return nil
			}
			if len(m.Payload) <= len(busEventPrefix) {
				continue
			}
			if err := out(object{rawEvent, json.RawMessage(m.Payload[len(busEventPrefix):])}); err != nil {
				return err
			}
		case <-ctx.Done():
			return a.busBroken(spec, out, fmt.Errorf("wait for events of the worker: %w", ctx.Err()))
		}
	}
}

// rawEvent marks an object that is already encoded.
const rawEvent = "\x00raw"

func (a *API) busBroken(spec runSpec, out sink, cause error) error {
	r := &run{backend: a.backend, spec: spec, sink: out}
	r.emit(r.errorEvent(errInternal()))
	return cause
}

// executeRun is the worker's side: it runs the generation and publishes.
func (w *Worker) executeRun(ctx context.Context, spec runSpec) error {
	publish := func(payload string) error {
		pctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		return w.redis.Publish(pctx, eventChannel+spec.TaskID, payload).Err()
	}
	_, err := w.generate(ctx, spec, func(ev object) error {
		raw, err := json.Marshal(ev)
		if err != nil {
			return fmt.Errorf("encode event: %w", err)
		}
		if err := publish(busEventPrefix + string(raw)); err != nil {
			w.log.Warn("event is lost", "task", spec.TaskID, "err", err.Error())
		}
		return nil
	})
	return errors.Join(err, publish(busEnd))
}
