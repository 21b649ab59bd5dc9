package difysim

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

func TestMain(m *testing.M) {
	if os.Getenv(processVariable) != "" {
		os.Exit(processMain())
	}
	goleak.VerifyTestMain(m)
}

// patience bounds every wait; the machine that runs the tests may be busy.
const patience = 60 * time.Second

// The keys of the seeded apps.
const (
	chatKey     = "app-chat-0123456789"
	ragKey      = "app-rag-0123456789"
	agentKey    = "app-agent-0123456789"
	advancedKey = "app-advanced-0123456789"
	complKey    = "app-completion-0123456789"
	flowKey     = "app-workflow-0123456789"
	datasetKey  = "dataset-0123456789abcdef"
)

const testSeed = `
apps:
  - {name: chat, mode: chat, key: app-chat-0123456789}
  - {name: rag, mode: chat, key: app-rag-0123456789, datasets: [handbook]}
  - {name: agent, mode: agent-chat, key: app-agent-0123456789}
  - {name: advanced, mode: advanced-chat, key: app-advanced-0123456789}
  - {name: completion, mode: completion, key: app-completion-0123456789}
  - {name: workflow, mode: workflow, key: app-workflow-0123456789}
datasetKey: dataset-0123456789abcdef
datasets: [{name: handbook}]
`

// servers are the real servers of one test.
type servers struct {
	pg    *servertest.Postgres
	redis *servertest.Redis
	cfg   Config
}

// quick makes requests cheap, so that only what a test is about takes time.
func quick(c *Config) {
	c.CPU.Cost, c.CPU.LightCost = 0, 0
	c.Answer = AnswerConfig{Tokens: 5, TokensPerSecond: 1000, FirstTokenDelay: 0}
	c.Server.GracefulTimeout = 5 * time.Second
}

func newServers(t *testing.T, migrate bool) *servers {
	t.Helper()
	s := &servers{pg: servertest.NewPostgres(t, servertest.PostgresOptions{}), redis: servertest.NewRedis(t)}
	dir := t.TempDir()
	seed := filepath.Join(dir, "seed.yaml")
	if err := os.WriteFile(seed, []byte(testSeed), 0o600); err != nil {
		t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(s.redis.Addr)
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.Instance = "test"
	cfg.Database.Host, cfg.Database.Port = s.pg.Host(), s.pg.Port()
	cfg.Redis.Host = host
	fmt.Sscan(port, &cfg.Redis.Port)
	cfg.SeedFile, cfg.Storage.Path = seed, filepath.Join(dir, "storage")
	cfg.Vector.Host, cfg.Vector.Port, cfg.Vector.Timeout = "127.0.0.1", 1, 2*time.Second // nobody listens
	quick(&cfg)
	s.cfg = cfg.WithPasswords(s.pg.Password("dify"), "", "")
	if migrate {
		if _, err := Migrate(t.Context(), s.cfg, testLog(t), false); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func testLog(t *testing.T) *slog.Logger {
	t.Helper()
	return slog.New(slog.DiscardHandler)
}

// instance is a process of the simulator inside the test.
type instance struct {
	t    *testing.T
	base string
	stop func() error
}

// start runs an API or a worker on a free port until the test ends or stop.
func start(t *testing.T, run func(ctx context.Context, ln net.Listener) error) *instance {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, ln) }()
	var result error
	done := false
	in := &instance{t: t, base: "http://" + ln.Addr().String()}
	in.stop = func() error {
		if !done {
			done = true
			cancel()
			result = <-ended
			client.CloseIdleConnections()
		}
		return result
	}
	t.Cleanup(func() {
		if err := in.stop(); err != nil {
			t.Error(err)
		}
	})
	return in
}

func startAPI(t *testing.T, cfg Config) *instance {
	t.Helper()
	api, err := NewAPI(cfg, testLog(t), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	in := start(t, api.Run)
	in.waitReady()
	return in
}

func startWorker(t *testing.T, cfg Config) *instance {
	t.Helper()
	w, err := NewWorker(cfg, testLog(t), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	in := start(t, w.Run)
	in.waitReady()
	return in
}

func (in *instance) waitReady() {
	in.t.Helper()
	eventually.Nil(in.t, patience, func() error {
		res, err := client.Do(in.request("GET", "/difysim/ready", "", nil))
		if err != nil {
			return err // a process may not listen yet
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			raw, err := io.ReadAll(res.Body)
			return errors.Join(fmt.Errorf("not ready: %s", raw), err)
		}
		return nil
	})
}

// response is an answer read whole.
type response struct {
	status int
	header http.Header
	body   string
	json   map[string]any
}

var client = &http.Client{Timeout: 2 * patience, Transport: &http.Transport{MaxIdleConnsPerHost: 100}}

func (in *instance) request(method, path, key string, body any) *http.Request {
	in.t.Helper()
	var rd io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		rd = strings.NewReader(b)
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			in.t.Fatal(err)
		}
		rd = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(in.t.Context(), method, in.base+path, rd)
	if err != nil {
		in.t.Fatal(err)
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	if rd != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return req
}

func (in *instance) call(method, path, key string, body any) response {
	in.t.Helper()
	return in.do(in.request(method, path, key, body))
}

func (in *instance) do(req *http.Request) response {
	in.t.Helper()
	res, err := client.Do(req)
	if err != nil {
		in.t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		in.t.Fatal(err)
	}
	out := response{status: res.StatusCode, header: res.Header, body: string(raw)}
	_ = json.Unmarshal(raw, &out.json) // not every answer is an object
	return out
}

// must fails the test unless the call succeeded.
func (in *instance) must(method, path, key string, body any) map[string]any {
	in.t.Helper()
	r := in.call(method, path, key, body)
	if r.status/100 != 2 {
		in.t.Fatalf("%s %s: %d %s", method, path, r.status, r.body)
	}
	return r.json
}

// stream is an open event stream.
type stream struct {
	t      *testing.T
	res    *http.Response
	lines  *bufio.Reader
	cancel context.CancelFunc
}

func (in *instance) openStream(path, key string, body any) *stream {
	in.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	in.t.Cleanup(cancel)
	res, err := client.Do(in.request("POST", path, key, body).WithContext(ctx))
	if err != nil {
		in.t.Fatal(err)
	}
	in.t.Cleanup(func() { res.Body.Close() })
	if res.StatusCode != http.StatusOK {
		raw, _ := io.ReadAll(res.Body)
		in.t.Fatalf("POST %s: %d %s", path, res.StatusCode, raw)
	}
	if got := res.Header.Get("Content-Type"); got != "text/event-stream; charset=utf-8" {
		in.t.Fatalf("content type %q", got)
	}
	return &stream{t: in.t, res: res, lines: bufio.NewReader(res.Body), cancel: cancel}
}

// next returns the next event; a ping is {"event":"ping"}.
func (s *stream) next() (map[string]any, error) {
	line, err := s.lines.ReadString('\n')
	if err != nil {
		return nil, err
	}
	end, err := s.lines.ReadString('\n')
	if err != nil {
		return nil, err
	}
	if end != "\n" {
		return nil, fmt.Errorf("frame %q is followed by %q", line, end)
	}
	line = strings.TrimSuffix(line, "\n")
	if line == "event: ping" {
		return map[string]any{"event": "ping"}, nil
	}
	data, ok := strings.CutPrefix(line, "data: ")
	if !ok {
		return nil, fmt.Errorf("frame %q", line)
	}
	var ev map[string]any
	if err := json.Unmarshal([]byte(data), &ev); err != nil {
		return nil, fmt.Errorf("frame %q: %w", line, err)
	}
	return ev, nil
}

// rest reads to the end of the stream.
func (s *stream) rest() []map[string]any {
	s.t.Helper()
	var out []map[string]any
	for {
		ev, err := s.next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			s.t.Fatal(err)
		}
		out = append(out, ev)
	}
}

// lastOf returns the last event that is no ping: one may still come while the
// instance ends the stream.
func lastOf(events []map[string]any) map[string]any {
	for _, e := range slices.Backward(events) {
		if e["event"] != "ping" {
			return e
		}
	}
	return nil
}

// names returns the events' names with repeats folded.
func names(events []map[string]any) string {
	var out []string
	for _, e := range events {
		n, _ := e["event"].(string)
		if n == "ping" || len(out) > 0 && out[len(out)-1] == n {
			continue
		}
		out = append(out, n)
	}
	return strings.Join(out, " ")
}

func chat(query string, more ...any) object {
	o := object{"query", query, "user", "alice", "inputs", object{}}
	return append(o, more...)
}

func text(m map[string]any, key string) string {
	s, _ := m[key].(string)
	return s
}

// difyRow reads one row of the database dify.
func (s *servers) difyRow(sql string, dest ...any) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.pg.DSN("dify"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	return conn.QueryRow(ctx, sql).Scan(dest...)
}

// exec changes the database dify as its owner.
func (s *servers) exec(t *testing.T, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.pg.DSN("dify"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

func (s *servers) redisHas(t *testing.T, key string) bool {
	t.Helper()
	n, err := s.redis.Client(t, 0).Exists(t.Context(), key).Result()
	if err != nil {
		t.Fatal(err)
	}
	return n == 1
}
