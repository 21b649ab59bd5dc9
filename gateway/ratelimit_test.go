package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"fournines/gateway/dify"
	"fournines/gateway/limit"
	"fournines/internal/eventually"
	"fournines/internal/servertest"
	"fournines/internal/strictyaml"
)

func rateOf(tb testing.TB, s string) limit.Rate {
	tb.Helper()
	r, err := limit.ParseRate(s)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// ask posts a chat with an app's key.
func ask(tb testing.TB, c *http.Client, url, key, body string, header ...string) (int, string, http.Header) {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), http.MethodPost, url+"/v1/chat-messages", strings.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	return read(tb, resp)
}

func TestARefusedRequestCostsNothingUpstream(t *testing.T) {
	in := newInstance(t, "zone-a", say("one"))
	cfg := testConfig(in)
	cfg.Apps = []App{{Name: "support", KeyIDs: []string{dify.KeyID("app-support")}}}
	cfg.RateLimits = []limit.Limit{{Name: "per-app", Rate: rateOf(t, "6 per hour"), Burst: 3, By: limit.ByApp}}
	g, c := start(t, cfg), client(t)
	for i := range 20 {
		status, body, h := ask(t, c, g.url, "app-support", `{"query":"q"}`)
		if got := h.Get("RateLimit-Policy"); got != `"per-app";q=6;w=3600` {
			t.Fatalf("RateLimit-Policy: %q", got)
		}
		if i < 3 {
			if state := h.Get("RateLimit"); status != http.StatusOK || !strings.HasPrefix(state, fmt.Sprintf(`"per-app";r=%d;t=`, 2-i)) {
				t.Fatalf("request %d: %d, %s", i, status, state)
			}
			continue
		}
		var said dify.Error
		if err := json.Unmarshal([]byte(body), &said); err != nil || status != http.StatusTooManyRequests || said.Status != status || said.Code != "too_many_requests" || !strings.Contains(said.Message, "per-app (requests 6 per hour)") {
			t.Fatalf("request %d: %d %s", i, status, body)
		}
		wait, err := strconv.Atoi(h.Get("Retry-After"))
		if err != nil || wait < 290 || wait > 300 || h.Get("RateLimit") != fmt.Sprintf(`"per-app";r=0;t=%d`, wait) {
			t.Fatalf("Retry-After %q, RateLimit %q", h.Get("Retry-After"), h.Get("RateLimit"))
		}
		if h.Get(degradedHeader) != "" {
			t.Fatal("nothing is degraded where nothing is shared")
		}
	}
	if n := in.served.Load(); n != 3 {
		t.Errorf("the instance got %d requests", n)
	}
	if status, _, h := ask(t, c, g.url, "app-other", `{}`); status != http.StatusOK || !strings.Contains(h.Get("RateLimit"), "r=2") {
		t.Errorf("another app: %d, %v", status, h)
	}
	if status, _, h := ask(t, c, g.url, "", `{}`); status != http.StatusOK || h.Get("RateLimit") != "" {
		t.Errorf("no app: %d, %v", status, h)
	}
	want := `
# HELP fournines_gateway_limit_requests_total Requests that a rate limit matched, by outcome: admitted (by all limits) or limited (by this one).
# TYPE fournines_gateway_limit_requests_total counter
fournines_gateway_limit_requests_total{limit="per-app",outcome="admitted"} 4
fournines_gateway_limit_requests_total{limit="per-app",outcome="limited"} 17
`
	if err := testutil.GatherAndCompare(g.reg, strings.NewReader(want), "fournines_gateway_limit_requests_total"); err != nil {
		t.Error(err)
	}
	if !strings.Contains(g.logs.String(), `means="0.001667 per second = 0.1 per minute"`) {
		t.Error("the log does not say what the rate means")
	}
}

func TestLimitsByUserAndAddress(t *testing.T) {
	in := newInstance(t, "zone-a", say("one"))
	cfg := testConfig(in)
	cfg.TrustedProxies = []string{"127.0.0.0/8"}
	cfg.RateLimits = []limit.Limit{
		{Name: "per-user", Rate: rateOf(t, "1 per hour"), By: limit.ByUser},
		{Name: "per-address", Rate: rateOf(t, "30 per hour"), Burst: 3, By: limit.ByAddress},
	}
	g, c := start(t, cfg), client(t)
	for i, tc := range []struct {
		user, from string
		want       int
	}{
		{"alice", "203.0.113.1", 200}, {"alice", "203.0.113.1", 429}, {"bob", "203.0.113.1", 200},
		{"carol", "203.0.113.1", 200}, {"dave", "203.0.113.1", 429}, {"dave", "203.0.113.2", 200},
		{"erin", "198.51.100.9, 203.0.113.1", 429},
	} {
		if got, body, _ := ask(t, c, g.url, "app-1", `{"user":"`+tc.user+`"}`, "X-Forwarded-For", tc.from); got != tc.want {
			t.Errorf("request %d, %s from %s: %d %s, want %d", i, tc.user, tc.from, got, body, tc.want)
		}
	}
}

const chatStream = "event: ping\n\ndata: {\"event\":\"message\",\"message_id\":\"m\",\"task_id\":\"t\",\"answer\":\"a\"}\n\n"

func TestTokensOfAnAnswerAreCharged(t *testing.T) {
	streaming, blocking := `{"query":"q","response_mode":"streaming"}`, `{"query":"q"}`
	end := func(tokens int) string {
		return fmt.Sprintf("data: {\"event\":\"message_end\",\"task_id\":\"t\",\"metadata\":{\"usage\":{\"total_tokens\":%d}}}\n\n", tokens)
	}
	stream := func(parts ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "text/event-stream")
			for _, p := range parts {
				_, _ = io.WriteString(w, p)
				_ = http.NewResponseController(w).Flush()
			}
		}
	}
	for _, tc := range []struct {
		name, body string
		answer     http.HandlerFunc
		usage      float64
		estimate   [2]float64
	}{
		{"stream", streaming, stream(chatStream, end(70)), 70, [2]float64{}},
		{"stream that is cut", streaming, func(w http.ResponseWriter, r *http.Request) {
			stream(chatStream, strings.Repeat(chatStream, 9))(w, r)
			panic(http.ErrAbortHandler)
		}, 0, [2]float64{18, 22}},
		{"stream that fails", streaming, stream("data: {\"event\":\"error\",\"code\":\"x\"}\n\n"), 0, [2]float64{}},
		{"blocking", blocking, say(`{"event":"message","answer":"a","metadata":{"usage":{"total_tokens":33}}}`), 33, [2]float64{}},
		{"blocking without usage", blocking, say(`{"answer":"` + strings.Repeat("x", 400) + `"}`), 0, [2]float64{100, 110}},
		{"refused by Dify", blocking, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadRequest) }, 0, [2]float64{}},
		{"nothing", blocking, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }, 0, [2]float64{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := newInstance(t, "zone-a", tc.answer)
			cfg := testConfig(in)
			cfg.RateLimits = []limit.Limit{{Name: "tokens", Rate: rateOf(t, "1 per day"), Burst: 10, By: limit.ByApp, Unit: limit.Tokens}}
			g, c := start(t, cfg), client(t)
			ask(t, c, g.url, "app-1", tc.body)
			eventually.Nil(t, patience, func() error { return nobodyInFlight(g) })
			var usage, estimate float64
			families, err := g.reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				if f.GetName() != "fournines_gateway_limit_tokens_total" {
					continue
				}
				for _, m := range f.GetMetric() {
					for _, l := range m.GetLabel() {
						switch l.GetValue() {
						case "usage":
							usage = m.GetCounter().GetValue()
						case "estimate":
							estimate = m.GetCounter().GetValue()
						}
					}
				}
			}
			if usage != tc.usage || estimate < tc.estimate[0] || estimate > tc.estimate[1] {
				t.Errorf("charged %v and %v by estimate, want %v and %v", usage, estimate, tc.usage, tc.estimate)
			}
			want := http.StatusOK
			if usage+estimate >= 10 {
				want = http.StatusTooManyRequests
			}
			in.handler.Store(new(say("{}")))
			if got, body, _ := ask(t, c, g.url, "app-1", blocking); got != want {
				t.Errorf("the next one: %d %s, want %d", got, body, want)
			}
		})
	}
}

func TestReloadChangesRatesUnderAStream(t *testing.T) {
	release := make(chan struct{})
	var once sync.Once
	open := func() { once.Do(func() { close(release) }) }
	defer open()
	in := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if !strings.Contains(string(body), "streaming") {
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, chatStream)
		_ = http.NewResponseController(w).Flush()
		<-release
		_, _ = io.WriteString(w, "data: {\"event\":\"message_end\",\"metadata\":{\"usage\":{\"total_tokens\":5}}}\n\n")
	})
	cfg := testConfig(in)
	cfg.RateLimits = []limit.Limit{{Name: "x", Rate: rateOf(t, "1 per hour"), Burst: 1, By: limit.ByApp}}
	g, c := start(t, cfg), client(t)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, g.url+"/v1/chat-messages", strings.NewReader(`{"response_mode":"streaming"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer app-1")
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if status, _, _ := ask(t, c, g.url, "app-1", `{}`); status != http.StatusTooManyRequests {
		t.Fatalf("before: %d", status)
	}
	next := cfg
	next.RateLimits = []limit.Limit{{Name: "x", Rate: rateOf(t, "100 per second"), By: limit.ByApp}}
	if err := g.Reload(next); err != nil {
		t.Fatal(err)
	}
	eventually.Nil(t, patience, func() error {
		if status, _, _ := ask(t, c, g.url, "app-1", `{}`); status != http.StatusOK {
			return fmt.Errorf("after: %d", status)
		}
		return nil
	})
	bad := next
	bad.RateLimits = slices.Clone(next.RateLimits)
	bad.RateLimits[0].By = "nobody"
	if err := g.Reload(bad); err == nil || !strings.Contains(err.Error(), "rateLimits[0].by") {
		t.Errorf("reload of a mistake: %v", err)
	}
	open()
	if status, body, _ := read(t, resp); status != http.StatusOK || !strings.Contains(body, "message_end") {
		t.Errorf("the stream: %d %q", status, body)
	}
}

func TestGatewaysShareALimit(t *testing.T) {
	in := newInstance(t, "zone-a", say("one"))
	redis := servertest.NewRedisCluster(t)
	cfg := testConfig(in)
	cfg.Redis = Redis{Nodes: redis.Addrs(), User: "gateway", PasswordFile: redis.PasswordFile("gateway")}
	cfg.RateLimitSharing.Timeout = 10 * time.Second // this test is not about time
	cfg.RateLimits = []limit.Limit{
		{Name: "per-app", Rate: rateOf(t, "1 per day"), Burst: 10, By: limit.ByApp},
		{Name: "all", Rate: rateOf(t, "1 per day"), Burst: 12, By: limit.ByAll},
	}
	one, two, c := start(t, cfg), start(t, cfg), client(t)
	for _, g := range []*running{one, two} {
		eventually.Nil(t, patience, func() error {
			if _, _, h := ask(t, c, g.url, "", `{}`); h.Get(degradedHeader) != "" {
				return errors.New("not shared yet")
			}
			return nil
		})
	}
	// What was spent meanwhile is not known here: another app, another day.
	cfg.RateLimits[1].Name = "all-2"
	for _, g := range []*running{one, two} {
		if err := g.Reload(cfg); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for i := range 30 {
		g := []*running{one, two}[i%2]
		if status, _, h := ask(t, c, g.url, "app-1", `{}`); status == http.StatusOK {
			n++
		} else if status != http.StatusTooManyRequests || h.Get(degradedHeader) != "" {
			t.Fatalf("request %d: %d %v", i, status, h)
		}
	}
	if n != 10 {
		t.Errorf("%d admitted of a burst of 10", n)
	}
	// The twenty that per-app refused are not charged to all.
	eventually.Nil(t, patience, func() error {
		_, _, h := ask(t, c, one.url, "app-1", `{}`)
		if s := h.Get("RateLimit"); !strings.Contains(s, `"all-2";r=2`) {
			return fmt.Errorf("RateLimit: %s", s)
		}
		return nil
	})
	for i, want := range []int{200, 200, 429} {
		if status, body, _ := ask(t, c, two.url, "app-2", `{}`); status != want {
			t.Errorf("request %d of another app: %d %s, want %d", i, status, body, want)
		}
	}
}

func TestWithoutRedisAGatewayEnforcesItsShare(t *testing.T) {
	in := newInstance(t, "zone-a", say("one"))
	cfg := testConfig(in)
	cfg.Redis = Redis{Nodes: []string{"127.0.0.1:1"}} // nobody listens there
	cfg.RateLimitSharing.Gateways = 2
	cfg.RateLimits = []limit.Limit{{Name: "per-app", Rate: rateOf(t, "1 per day"), Burst: 10, By: limit.ByApp}}
	g, c := start(t, cfg), client(t)
	n := 0
	for range 20 {
		status, _, h := ask(t, c, g.url, "app-1", `{}`)
		if status == http.StatusOK {
			n++
		}
		if h.Get(degradedHeader) != "degraded" {
			t.Fatalf("%s: %q", degradedHeader, h.Get(degradedHeader))
		}
	}
	if n != 5 {
		t.Errorf("%d admitted, want half the burst of 10", n)
	}
	if err := testutil.GatherAndCompare(g.reg, strings.NewReader(`
# HELP fournines_gateway_limit_degraded 1 while some Redis master is out of reach and this gateway enforces its share of rate limits by itself.
# TYPE fournines_gateway_limit_degraded gauge
fournines_gateway_limit_degraded 1
`), "fournines_gateway_limit_degraded"); err != nil {
		t.Error(err)
	}
	eventually.Nil(t, patience, func() error {
		if !strings.Contains(g.logs.String(), "Redis is out of reach") {
			return errors.New("the log does not say so")
		}
		return nil
	})
}

func TestRateLimitsInAFile(t *testing.T) {
	const file = `
upstreams: [{address: "127.0.0.1:5001"}]
apps: [{name: support, keyIds: ["0123456789ab"]}]
trustedProxies: [10.0.0.0/8]
rateLimits:
  - name: per-app
    rate: 100 per minute
    burst: 10
    by: app
    match: {apps: [support], classes: [chat, workflow], pathPrefix: /v1/}
  - {name: tokens, rate: 60000 per hour, by: user, unit: tokens}
`
	cfg := DefaultConfig()
	if err := strictyaml.UnmarshalValid("gateway.yaml", []byte(file), &cfg); err != nil {
		t.Fatal(err)
	}
	if r := cfg.RateLimits[0].Rate; r != (limit.Rate{Count: 100, Window: time.Minute}) {
		t.Errorf("rate %v", r)
	}
	for change, want := range map[[2]string]string{
		{"100 per minute", "100"}:            `rateLimits[0].rate: 100 in which time? The window is missing`,
		{"100 per minute", "100 QPS"}:        `rateLimits[0].rate: "100 QPS" is no rate`,
		{"by: app", "by: key"}:               `rateLimits[0].by: "key" is none of`,
		{"classes: [chat", "classes: [talk"}: `rateLimits[0].match.classes[0]: "talk" is none of`,
		{"apps: [support]", "apps: [sales]"}: `rateLimits[0].match.apps[0]: "sales" is the name of none of the apps`,
		{"10.0.0.0/8", "ten"}:                `trustedProxies[0]: "ten" is not a network`,
	} {
		cfg := DefaultConfig()
		err := strictyaml.UnmarshalValid("gateway.yaml", []byte(strings.Replace(file, change[0], change[1], 1)), &cfg)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", change[1], err, want)
		}
	}
}
