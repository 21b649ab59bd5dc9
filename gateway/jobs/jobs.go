// Package jobs is the gateway's async lane: a request that prefers an
// asynchronous answer (RFC 7240) becomes a job in Redis Cluster, which survives
// the death of the gateway that took it in and of a Redis master, and ends in a
// result or in the dead-letter list.
//
// A job's record in Redis (scripts.go) is the truth about it; only its scripts
// change it. asynq brings deliveries to the workers: it may bring one twice, late
// or never, because the record decides what a delivery is worth, and a sweep
// sees to it that each waiting record has one.
package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hibiken/asynq"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

// Why a run was ended from this side.
var (
	errStopping = errors.New("the gateway is stopping")
	errCanceled = errors.New("the job was canceled")
	errTaken    = errors.New("another gateway has the job")
	errTooLong  = errors.New("the run took too long")
)

// Deps is what the lane needs of its surroundings.
type Deps struct {
	// Handler carries requests out: the gateway itself.
	Handler http.Handler
	// Client reaches the Redis Cluster. Its read timeout must be longer than a
	// round trip, WAIT brings its own. The lane does not close it.
	Client redis.UniversalClient
	// Drain says how long a stopping gateway still announces that, and how long
	// it then waits.
	Drain func() (announce, timeout time.Duration)
	// Heartbeat is the silence after which a follower gets a comment; 0 is none.
	Heartbeat func() time.Duration
	Log       *slog.Logger
	Registry  prometheus.Registerer
}

// settings are what a reload replaces as a whole.
type settings struct {
	Config
	seal    *sealer
	webhook *caller // nil: none allowed
}

// Lane takes jobs in, runs them and tells about them.
type Lane struct {
	deps     Deps
	log      *slog.Logger
	m        *metrics
	store    *store
	client   *asynq.Client
	inspect  *asynq.Inspector
	owner    string
	settings atomic.Pointer[settings]

	stopping  chan struct{} // closed when nothing new is begun
	parting   chan struct{} // closed when followers are to go elsewhere
	mu        sync.Mutex
	stopped   bool // guarded by mu
	runs      sync.WaitGroup
	followers atomic.Int64
	troubled  [queues]atomic.Bool // cannot take jobs now, by the last sweep
	hookSlots chan struct{}
	kick      chan struct{} // asks for a sweep now
}

// New checks cfg, reads its key files and makes a lane; it starts nothing.
func New(cfg Config, deps Deps) (*Lane, error) {
	set, err := newSettings(cfg)
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	l := &Lane{
		deps: deps, log: deps.Log.With("part", "jobs"),
		store:    &store{client: deps.Client, durable: cfg.Durability == DurabilityReplica, wait: cfg.ReplicaTimeout},
		client:   asynq.NewClientFromRedisClient(deps.Client),
		inspect:  asynq.NewInspectorFromRedisClient(deps.Client),
		owner:    host + ":" + strconv.Itoa(os.Getpid()),
		stopping: make(chan struct{}), parting: make(chan struct{}),
		hookSlots: make(chan struct{}, maxCalls), kick: make(chan struct{}, 1),
	}
	if l.m, err = newMetrics(deps.Registry); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	l.settings.Store(set)
	return l, nil
}

func newSettings(cfg Config) (*settings, error) {
	seal, err := loadSealer(cfg.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("jobs.keyFile: %w", err)
	}
	set := &settings{Config: cfg, seal: seal}
	if len(cfg.Webhook.Hosts) > 0 {
		if set.webhook, err = newCaller(cfg.Webhook); err != nil {
			return nil, fmt.Errorf("jobs.webhook: %w", err)
		}
	}
	return set, nil
}

// Reload replaces the settings and reads the key files again. The number of
// workers, the durability and its timeout need a restart.
func (l *Lane) Reload(cfg Config) (apply func(), err error) {
	old := l.settings.Load()
	var fixed []error
	keep := func(field string, same bool) {
		if !same {
			fixed = append(fixed, fmt.Errorf("jobs.%s: cannot change while the gateway runs; restart it", field))
		}
	}
	keep("workers", cfg.Workers == old.Workers)
	keep("durability", cfg.Durability == old.Durability)
	keep("replicaTimeout", cfg.ReplicaTimeout == old.ReplicaTimeout)
	if err := errors.Join(fixed...); err != nil {
		return nil, err
	}
	set, err := newSettings(cfg)
	if err != nil {
		return nil, err
	}
	return func() {
		if c := l.settings.Swap(set).webhook; c != nil {
			c.close()
		}
	}, nil
}

// Run works until ctx ends. Then it begins nothing new, lets what runs come to its
// end for as long as Deps.Drain says, and gives back or settles the rest.
func (l *Lane) Run(ctx context.Context) error {
	defer func() {
		if c := l.settings.Load().webhook; c != nil {
			c.close()
		}
	}()
	base, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	var wg sync.WaitGroup
	sweepCtx, stopSweep := context.WithCancel(base)
	wg.Go(func() { l.sweepLoop(sweepCtx) })

	workers := l.settings.Load().Workers
	var server *asynq.Server
	if workers > 0 {
		server = l.newServer(workers)
		if err := server.Start(asynq.HandlerFunc(func(_ context.Context, t *asynq.Task) error { return l.deliver(base, t) })); err != nil {
			stopSweep()
			wg.Wait()
			return fmt.Errorf("start the workers: %w", err)
		}
	}
	<-ctx.Done()
	l.mu.Lock()
	l.stopped = true
	l.mu.Unlock()
	close(l.stopping)
	announce, timeout := l.deps.Drain()
	if server != nil {
		server.Stop()
	}
	finished := make(chan struct{})
	go func() { l.runs.Wait(); close(finished) }()
	timer := time.NewTimer(announce)
	select { // followers stay while the gateway still announces that it goes
	case <-timer.C:
	case <-finished:
		if l.followers.Load() > 0 {
			<-timer.C
		}
	}
	timer.Stop()
	close(l.parting)
	timer = time.NewTimer(timeout)
	select {
	case <-timer.C:
		l.log.Warn("jobs did not end in time, they are given back or ended")
	case <-finished:
	}
	timer.Stop()
	end(errStopping)
	<-finished
	if server != nil {
		server.Shutdown()
	}
	stopSweep()
	wg.Wait()
	return nil
}

func (l *Lane) newServer(workers int) *asynq.Server {
	names := make(map[string]int, queues)
	for q := range queues {
		names[queueName(q)] = 1
	}
	return asynq.NewServerFromRedisClient(l.deps.Client, asynq.Config{
		Concurrency: workers, Queues: names,
		// How soon an idle worker finds a new job, and a paused one comes back.
		TaskCheckInterval: 250 * time.Millisecond, DelayedTaskCheckInterval: time.Second,
		// What asynq would count as failures are pauses and deliveries that came to
		// nothing: the record counts.
		IsFailure:       func(error) bool { return false },
		RetryDelayFunc:  func(_ int, err error, _ *asynq.Task) time.Duration { return pauseOf(err) },
		Logger:          asynqLog{l.log},
		LogLevel:        asynq.WarnLevel,
		ShutdownTimeout: time.Second, // Run has waited
	})
}

// asynqLog keeps the library's own words at debug level.
type asynqLog struct{ log *slog.Logger }

func (a asynqLog) Debug(args ...any) { a.log.Debug("asynq", "says", fmt.Sprint(args...)) }
func (a asynqLog) Info(args ...any)  { a.log.Debug("asynq", "says", fmt.Sprint(args...)) }
func (a asynqLog) Warn(args ...any)  { a.log.Debug("asynq", "says", fmt.Sprint(args...)) }
func (a asynqLog) Error(args ...any) { a.log.Debug("asynq", "says", fmt.Sprint(args...)) }
func (a asynqLog) Fatal(args ...any) { a.log.Error("asynq", "says", fmt.Sprint(args...)) }

// taskType is the type of the lane's tasks.
const taskType = "job"

// sendTime bounds the sending of a delivery.
const sendTime = 5 * time.Second

// deliveryRetries bounds how often asynq brings one delivery again after a worker's
// death; the sweep makes new ones.
const deliveryRetries = 100

// send asks asynq to bring a job to a worker after a pause. A failure is not one
// of the job's: the sweep will find that the delivery is missing.
func (l *Lane) send(ctx context.Context, id string, gen int64, wait time.Duration) {
	queue, _ := queueOf(id)
	d := delivery(id, gen)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), sendTime)
	defer cancel()
	opts := []asynq.Option{
		asynq.Queue(queueName(queue)), asynq.TaskID(d), asynq.MaxRetry(deliveryRetries),
		// asynq's own deadline ends nothing: see deliver.
		asynq.Timeout(l.settings.Load().RunTimeout + 24*time.Hour),
	}
	if wait > 0 {
		opts = append(opts, asynq.ProcessIn(wait))
	}
	_, err := l.client.EnqueueContext(ctx, asynq.NewTask(taskType, []byte(d)), opts...)
	if err != nil && !errors.Is(err, asynq.ErrTaskIDConflict) {
		l.log.Debug("delivery not sent, the sweep will", "job", id, "err", err)
	}
}

// begin counts a run in, unless the lane is stopping.
func (l *Lane) begin() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return false
	}
	l.runs.Add(1)
	return true
}

// sweepSoon asks for a sweep now.
func (l *Lane) sweepSoon() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}
