package gateway

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fournines/gateway/conversation"
	"fournines/gateway/dify"
)

// turnLease is for how long a conversation stays taken in Redis after its
// gateway died.
const turnLease = 15 * time.Second

// turnMetrics are the conversations' metrics, and the observer of their lock.
type turnMetrics struct {
	waits  *prometheus.CounterVec
	failed prometheus.Counter
	lost   prometheus.Counter
}

var _ conversation.Observer = (*turnMetrics)(nil)

func newTurnMetrics(reg prometheus.Registerer, waiting func() float64) (*turnMetrics, error) {
	const ns, sub = "fournines", "gateway"
	m := &turnMetrics{
		waits: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: "conversation_waits_total",
			Help: "Requests that found their conversation busy, by outcome: passed (it waited), full or timeout (429), gone (the client left)."}, []string{"outcome"}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: "conversation_lock_failures_total",
			Help: "Questions about a conversation's lock that Redis did not answer in time; this gateway then serialises alone."}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: "conversation_locks_lost_total",
			Help: "Locks of conversations that ended in Redis while their request was still in work."}),
	}
	for _, c := range []prometheus.Collector{m.waits, m.failed, m.lost,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: ns, Subsystem: sub, Name: "conversations_waiting",
			Help: "Requests waiting for their conversation."}, waiting)} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// LockFailed implements conversation.Observer.
func (m *turnMetrics) LockFailed(error) { m.failed.Inc() }

// LockLost implements conversation.Observer.
func (m *turnMetrics) LockLost() { m.lost.Inc() }

// newTurns makes what serialises conversations, across gateways when they share
// a Redis.
func (g *Gateway) newTurns(reg prometheus.Registerer) (err error) {
	g.turnMetrics, err = newTurnMetrics(reg, func() float64 { return float64(g.turns.Waiting()) })
	var lock conversation.Lock
	if g.redis != nil {
		lock = conversation.Redis{Client: g.redis}
	}
	g.turns = conversation.New(lock, turnLease, g.turnMetrics)
	return err
}

// takeTurn waits until no other request of the same conversation is in work.
func (x *exchange) takeTurn() error {
	cfg := &x.set.Conversations
	if !cfg.Serialise || !x.class.Streams() || x.asked.Conversation == "" {
		return nil
	}
	begin := time.Now()
	turn, err := x.g.turns.Take(x.ctx, conversation.KeyOf(x.app.id, x.asked.Conversation),
		conversation.Limits{MaxWaiting: cfg.MaxWaiting, Wait: cfg.Wait})
	outcome := "passed"
	switch {
	case err == nil:
		x.turn = turn
		if time.Since(begin) < turnNoticed {
			return nil
		}
	case errors.Is(err, conversation.ErrFull):
		err, outcome = dify.ErrConversationBusy, "full"
	case errors.Is(err, conversation.ErrTimeout):
		err, outcome = dify.ErrConversationBusy, "timeout"
	case errors.Is(err, context.Canceled):
		outcome = "gone"
	}
	x.g.turnMetrics.waits.WithLabelValues(outcome).Inc()
	return err
}

// turnNoticed is what a turn may take without counting as a wait: the question
// to Redis is one.
const turnNoticed = 10 * time.Millisecond

// endTurn lets the next request of the conversation begin.
func (x *exchange) endTurn() {
	x.turn.End()
	x.turn = nil
}
