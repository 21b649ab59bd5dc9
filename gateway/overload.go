package gateway

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"fournines/gateway/admit"
	"fournines/gateway/balance"
	"fournines/gateway/dify"
)

// Overload sets what happens when there is more to do than the instances can.
// limits.maxInFlight, maxQueue and queueTimeout are its outer bounds.
type Overload struct {
	// Adaptive lets the number of requests that an instance has in work before
	// their first content follow what the instance can do. Default true.
	Adaptive bool `yaml:"adaptive"`
	// MinLimit, MaxLimit and InitialLimit bound that number, per instance and
	// gateway, and say where it begins. Default 4, 400 and 10.
	MinLimit     int `yaml:"minLimit"`
	MaxLimit     int `yaml:"maxLimit"`
	InitialLimit int `yaml:"initialLimit"`
	// MaxStreams bounds the answers of one instance that have begun and go on;
	// 0 is no bound but limits.maxInFlight. Default 0.
	MaxStreams int64 `yaml:"maxStreams"`
	// StandingTimeout replaces limits.queueTimeout for an app whose queue has
	// not been empty for four times as long: a queue that stands makes
	// everybody wait and nobody faster. Default 500ms; 0 turns it off.
	StandingTimeout time.Duration `yaml:"standingTimeout"`
	// AppQueue bounds the waiting requests of one app. Default 500: when a zone is
	// lost, its streams come back at once, and most of them may be one app's.
	AppQueue int `yaml:"appQueue"`
	// MaxApps bounds how many apps that are not configured have a queue of
	// their own; an app gets one when an instance has accepted its key. The
	// rest share one. Default 4096.
	MaxApps int `yaml:"maxApps"`
}

func defaultOverload() Overload {
	return Overload{
		Adaptive: true, MinLimit: 4, MaxLimit: 400, InitialLimit: 10,
		StandingTimeout: 500 * time.Millisecond, AppQueue: 500, MaxApps: 4096,
	}
}

func (o *Overload) validate(bad func(field, format string, args ...any)) {
	if o.MinLimit < 1 {
		bad("overload.minLimit", "%d is less than 1", o.MinLimit)
	}
	if o.MaxLimit < o.MinLimit || o.MaxLimit > 1_000_000 {
		bad("overload.maxLimit", "%d is not between minLimit and 1000000", o.MaxLimit)
	}
	if o.InitialLimit < o.MinLimit || o.InitialLimit > o.MaxLimit {
		bad("overload.initialLimit", "%d is not between minLimit and maxLimit", o.InitialLimit)
	}
	if o.MaxStreams < 0 {
		bad("overload.maxStreams", "%d is less than 0", o.MaxStreams)
	}
	if o.StandingTimeout != 0 && o.StandingTimeout < 10*time.Millisecond {
		bad("overload.standingTimeout", "%v is less than 10ms", o.StandingTimeout)
	}
	if o.AppQueue < 0 {
		bad("overload.appQueue", "%d is less than 0", o.AppQueue)
	}
	if o.MaxApps < 0 || o.MaxApps > 1_000_000 {
		bad("overload.maxApps", "%d is not between 0 and 1000000", o.MaxApps)
	}
}

func (o *Overload) limit() balance.Limit {
	return balance.Limit{Adaptive: o.Adaptive, Min: o.MinLimit, Max: o.MaxLimit, Initial: o.InitialLimit}
}

// The values of App.Priority.
const (
	PriorityInteractive = "interactive"
	PriorityBatch       = "batch"
)

// admission translates the settings for the admission of requests.
func (c *Config) admission() (admit.Config, map[string]admit.Limits) {
	apps := make(map[string]admit.Limits, len(c.Apps))
	for _, a := range c.Apps {
		l := admit.Limits{Weight: a.Weight, MaxInFlight: a.MaxInFlight, MaxQueue: a.MaxQueue}
		if a.Priority == PriorityBatch {
			l.Priority = admit.Batch
		}
		apps[a.Name] = l
	}
	return admit.Config{
		MaxQueue: c.Limits.MaxQueue, Timeout: c.Limits.QueueTimeout, Target: c.Overload.StandingTimeout,
		AppQueue: c.Overload.AppQueue, MaxApps: c.Overload.MaxApps,
	}, apps
}

// WithBatchPriority returns a context for a request in whose answer nobody is
// waiting, such as a job's: it waits behind interactive ones.
func WithBatchPriority(ctx context.Context) context.Context {
	return admit.WithPriority(ctx, admit.Batch)
}

// costs is the work to expect from a request of a class, in chats: what counts
// in the fair shares of apps.
var costs = [...]float64{
	dify.Other: 0.3, dify.Read: 0.1, dify.Retrieve: 0.5, dify.Stop: 0.05, dify.Mutate: 0.2, dify.Chat: 1,
	dify.Workflow: 1, dify.Upload: 0.5, dify.Ingest: 0.5, dify.Console: 0.3,
}

// queueUp makes the request's ticket. The app is known, and how the answer is
// wanted.
func (x *exchange) queueUp() {
	t := &x.ticket
	shared := admit.Unknown
	switch path := x.r.URL.Path; {
	case strings.HasPrefix(path, "/console/"):
		shared = admit.Console
	case strings.HasPrefix(path, "/api/"):
		shared = admit.Web
	}
	t.App, x.learnt = x.g.admit.App(x.app.id, x.app.named, shared)
	t.Kind = balance.Kind{
		Group:      group(x.app.id, x.class, x.asked.Mode == dify.Streaming),
		Streams:    x.class.Streams() || x.upgrade,
		Unmeasured: x.class == dify.Upload || x.upgrade, // that is the client's time
	}
	if int(x.class) < len(costs) {
		t.Cost = costs[x.class]
	}
	t.Priority = max(t.App.Priority(), admit.ContextPriority(x.r.Context()))
	if x.trace != nil || x.class == dify.Ingest || x.class == dify.Upload || lowUrgency(x.r.Header["Priority"]) {
		t.Priority = admit.Batch
	}
}

// group tells apart what takes differently long until its first content.
func group(app string, class dify.Class, streams bool) uint8 {
	h := uint32(2166136261) // FNV-1a
	for i := range len(app) {
		h = (h ^ uint32(app[i])) * 16777619
	}
	h = (h ^ uint32(class)<<1) * 16777619
	if streams {
		h = (h ^ 1) * 16777619
	}
	return uint8(h ^ h>>8 ^ h>>16 ^ h>>24)
}

// lowUrgency reads RFC 9218: urgency 5 to 7 is for what nobody waits for.
func lowUrgency(values []string) bool {
	for _, v := range values {
		for field := range strings.SplitSeq(v, ",") {
			field = strings.TrimSpace(field)
			if len(field) == 3 && field[:2] == "u=" && field[2] >= '5' && field[2] <= '7' {
				return true
			}
		}
	}
	return false
}

// learn gives the app a queue of its own when the instance has accepted its key.
func (x *exchange) learn(status int) {
	if !x.learnt && status/100 == 2 && dify.ProvesKey(x.r.Method, x.r.URL.Path) {
		x.learnt = true
		x.g.admit.Learn(x.app.id)
	}
}

// refusal is what the client is told when it got no place.
func refusal(err error) (e dify.Error, ok bool) {
	var r *admit.Refused
	if !errors.As(err, &r) {
		return e, false
	}
	e = dify.ErrOverloaded
	if r.OwnFault() {
		e = dify.ErrAppBusy
	}
	e.RetryAfterSeconds = int(r.RetryAfter / time.Second)
	return e, true
}

// workOver notes the answer's first content: the instance's work before it is
// over. Failures are quick and say nothing about how long the work takes.
func (x *exchange) workOver() { x.ticket.Slot.Content(x.answered < http.StatusBadRequest) }
