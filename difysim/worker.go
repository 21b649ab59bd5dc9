package difysim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"fournines/difysim/celery"
	"fournines/difysim/sqlsession"
)

// Worker is one instance of Dify's worker service: it takes tasks from the
// queues, acknowledges them first and runs them then.
type Worker struct {
	*backend
	consumer *celery.Consumer
	handler  http.Handler
	notReady atomic.Pointer[string]
}

// NewWorker returns a worker; it opens nothing.
func NewWorker(cfg Config, log *slog.Logger, reg Registry) (*Worker, error) {
	b, err := newBackend(cfg, log, newMetrics(reg))
	if err != nil {
		return nil, err
	}
	w := &Worker{backend: b, consumer: celery.NewConsumer(b.broker, cfg.Indexing.Visibility, datasetQueue, workflowQueue)}
	starting := "starting"
	w.notReady.Store(&starting)
	b.registerGauges(reg)
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "difysim_queue_length", Help: "Tasks that wait in the dataset queue; -1 when the broker does not answer.",
		ConstLabels: prometheus.Labels{"queue": datasetQueue},
	}, func() float64 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		n, err := b.producer.Length(ctx, datasetQueue)
		if err != nil {
			return -1
		}
		return float64(n)
	}))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(rw http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(rw, "This is the worker of a simulator of Dify.")
	})
	mux.HandleFunc("GET /health", func(rw http.ResponseWriter, _ *http.Request) {
		_ = writeJSON(rw, http.StatusOK, object{"pid", os.Getpid(), "status", "ok", "version", cfg.Version})
	})
	mux.HandleFunc("GET /difysim/ready", func(rw http.ResponseWriter, r *http.Request) {
		b.answerReady(rw, r, w.notReady.Load())
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	w.handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("X-Dify-Simulator", "true")
		rw.Header().Set("X-Version", cfg.Version)
		mux.ServeHTTP(rw, r)
	})
	return w, nil
}

// Run consumes tasks until ctx ends, then lets running ones finish within the
// graceful timeout. Health and metrics are served on ln.
func (w *Worker) Run(ctx context.Context, ln net.Listener) error {
	defer w.close()
	srv := &http.Server{Handler: w.handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: w.cfg.Server.KeepAlive, MaxHeaderBytes: 32 << 10}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()

	take, stopTaking := context.WithCancel(ctx)
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	var loops sync.WaitGroup
	loops.Go(func() {
		err := w.waitForSchema(take, func(err error) {
			if err == nil {
				w.notReady.Store(nil)
				return
			}
			reason := err.Error()
			w.notReady.Store(&reason)
		})
		if err != nil {
			return
		}
		w.log.Info("worker takes tasks", "address", ln.Addr().String(), "concurrency", w.cfg.Indexing.Concurrency)
		var inner sync.WaitGroup
		for range w.cfg.Indexing.Concurrency {
			inner.Go(func() { w.consume(take, life) })
		}
		inner.Go(func() { w.restore(take) })
		inner.Wait()
	})
	var err error
	select {
	case <-ctx.Done():
	case err = <-served:
	}
	stopTaking()
	finished := make(chan struct{})
	go func() { loops.Wait(); close(finished) }()
	grace := time.NewTimer(w.cfg.Server.GracefulTimeout)
	defer grace.Stop()
	select {
	case <-finished:
	case <-grace.C:
		w.log.Warn("grace is over, tasks are cut")
	}
	end()
	<-finished
	_ = srv.Close()
	if err == nil {
		err = <-served
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve: %w", err)
}

// consume takes one task after another. take ends the taking, life the running.
func (w *Worker) consume(take, life context.Context) {
	bound, said := false, ""
	for take.Err() == nil {
		var task celery.Task
		var ok bool
		err := error(nil)
		if !bound {
			err = w.consumer.Bind(take)
			bound = err == nil
		}
		if err == nil {
			task, ok, err = w.consumer.Next(take)
		}
		if err != nil {
			if take.Err() != nil {
				return
			}
			if msg := err.Error(); msg != said {
				w.log.Warn("queue is not available", "err", msg)
				said = msg
			}
			_ = sleep(take, 500*time.Millisecond)
			continue
		}
		said = ""
		if ok {
			w.runTask(life, task)
		}
	}
}

func (w *Worker) restore(ctx context.Context) {
	for sleep(ctx, min(w.cfg.Indexing.Visibility/2, 30*time.Second)) == nil {
		if n, err := w.consumer.Restore(ctx); err != nil {
			w.log.Debug("restore of unacknowledged tasks", "err", err.Error())
		} else if n > 0 {
			w.log.Warn("unacknowledged tasks were put back", "count", n)
		}
	}
}

func (w *Worker) runTask(ctx context.Context, t celery.Task) {
	w.metrics.tasksActive.Inc()
	defer w.metrics.tasksActive.Dec()
	start := time.Now()
	err := w.dispatch(ctx, t)
	status, trace := "SUCCESS", any(nil)
	if err != nil {
		status, trace = "FAILURE", err.Error()
		w.log.Warn("task failed", "task", t.Name, "id", t.ID, "err", err.Error())
	} else {
		w.log.Info("task done", "task", t.Name, "id", t.ID, "took", time.Since(start).String())
	}
	w.metrics.tasks.WithLabelValues(shortTask(t.Name), strings.ToLower(status)).Inc()
	if ctx.Err() != nil {
		return
	}
	// Dify's result backend is the database; the result itself is pickled None.
	err = w.unit(ctx, func(s *sqlsession.Session) error {
		_, err := s.Exec(ctx, `INSERT INTO celery_taskmeta (task_id, status, date_done, traceback, name, worker, retries, queue) VALUES ($1, $2, $3::timestamp, $4, $5, $6, 0, $7) ON CONFLICT (task_id) DO UPDATE SET status = excluded.status, date_done = excluded.date_done`,
			t.ID, status, stamp(time.Now()), trace, t.Name, w.cfg.Instance, t.Queue)
		return err
	})
	if err != nil {
		w.log.Warn("task result is not saved", "id", t.ID, "err", err.Error())
	}
}

// shortTask is a task's name as a metric label; unknown ones share one.
func shortTask(name string) string {
	switch name {
	case indexTask, updateTask, cleanDocumentTask, cleanDatasetTask, deleteSegmentTask, workflowTask:
		return name[strings.LastIndexByte(name, '.')+1:]
	}
	return "unknown"
}

// dispatch runs a task by its name.
func (w *Worker) dispatch(ctx context.Context, t celery.Task) error {
	var first, second string
	texts := func() error { return errors.Join(t.Arg(0, &first), t.Arg(1, &second)) }
	switch t.Name {
	case indexTask:
		var documents []string
		if err := errors.Join(t.Arg(0, &first), t.Arg(1, &documents)); err != nil {
			return err
		}
		return w.indexDocuments(ctx, first, documents)
	case updateTask:
		if err := texts(); err != nil {
			return err
		}
		return w.reindexDocument(ctx, first, second)
	case cleanDocumentTask:
		if err := texts(); err != nil {
			return err
		}
		return w.cleanDocument(ctx, second, first)
	case cleanDatasetTask:
		if err := t.Arg(0, &first); err != nil {
			return err
		}
		return w.cleanDataset(ctx, first)
	case deleteSegmentTask:
		var node, dataset string
		if err := errors.Join(t.Arg(1, &node), t.Arg(2, &dataset)); err != nil {
			return err
		}
		if w.vectors == nil || node == "" {
			return nil
		}
		_, err := w.vectors.DeleteWhere(ctx, collection(dataset), "doc_id", node)
		return err
	case workflowTask:
		var spec runSpec
		if err := t.Arg(0, &spec); err != nil {
			return err
		}
		return w.executeRun(ctx, spec)
	default:
		return fmt.Errorf("received unregistered task of type %q", t.Name)
	}
}
