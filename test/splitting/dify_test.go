package splitting

import (
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
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fournines/difysim"
	"fournines/internal/eventually"
	"fournines/internal/servertest"
	"fournines/pgproxy"
)

// The keys of what the seed creates.
const (
	chatKey    = "app-chat-0123456789"
	flowKey    = "app-workflow-0123456789"
	datasetKey = "dataset-0123456789abcdef"
)

const difySeed = `
apps:
  - {name: chat, mode: chat, key: ` + chatKey + `, datasets: [handbook]}
  - {name: workflow, mode: workflow, key: ` + flowKey + `}
datasetKey: ` + datasetKey + `
datasets: [{name: handbook}]
`

// leastShare is the share of the application's read statements that must run on
// standbys.
const leastShare = 0.9

// dify is an API process and a worker of the simulator, which sends the
// statements of Dify 0.6.9 as SQLAlchemy does, each through a proxy of its own.
type dify struct {
	t      *testing.T
	base   string
	client *http.Client
}

// newDify migrates the database directly, before the proxies of API and worker
// are started, so that they know all tables from the beginning.
func newDify(t *testing.T, c *cluster, proxies func() (api, worker *proxy)) (d *dify, api, worker *proxy) {
	t.Helper()
	redis := servertest.NewRedis(t)
	dir := t.TempDir()
	cfg := difysim.DefaultConfig()
	cfg.Instance, cfg.SeedFile, cfg.Storage.Path = "test", filepath.Join(dir, "seed.yaml"), filepath.Join(dir, "storage")
	if err := os.WriteFile(cfg.SeedFile, []byte(difySeed), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Redis.Host, cfg.Redis.Port = hostPort(t, redis.Addr)
	cfg.Vector.Store = difysim.VectorNone
	// Only the database is of interest here.
	cfg.CPU.Cost, cfg.CPU.LightCost = 0, 0
	cfg.Answer = difysim.AnswerConfig{Tokens: 5, TokensPerSecond: 1000}
	cfg.Server.GracefulTimeout = 5 * time.Second
	at := func(addr string) difysim.Config {
		cfg := cfg
		cfg.Database.Host, cfg.Database.Port = hostPort(t, addr)
		return cfg.WithPasswords(c.primary.Password("dify"), "", "")
	}
	log := slog.New(slog.DiscardHandler)
	if _, err := difysim.Migrate(t.Context(), at(c.primary.Address()), log, false); err != nil {
		t.Fatal(err)
	}
	api, worker = proxies()
	a, err := difysim.NewAPI(at(api.addr), log, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	w, err := difysim.NewWorker(at(worker.addr), log, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	d = &dify{t: t, client: &http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: 100}}}
	t.Cleanup(d.client.CloseIdleConnections)
	d.base = serve(t, a.Run)
	serve(t, w.Run)
	eventually.Nil(t, time.Minute, func() error {
		_, err := d.try("GET", "/difysim/ready", "", nil)
		return err
	})
	return d, api, worker
}

func hostPort(t *testing.T, addr string) (host string, port int) {
	t.Helper()
	host, text, err := net.SplitHostPort(addr)
	if err == nil {
		port, err = strconv.Atoi(text)
	}
	if err != nil {
		t.Fatal(err)
	}
	return host, port
}

// serve runs one process of the simulator until the test ends.
func serve(t *testing.T, run func(context.Context, net.Listener) error) (base string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return "http://" + ln.Addr().String()
}

type object map[string]any

// try sends one request, and returns the answer's object.
func (d *dify) try(method, path, key string, body object) (object, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(context.Background(), method, d.base+path, bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+key)
	res, err := d.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if raw, err = io.ReadAll(res.Body); err != nil {
		return nil, err
	}
	if res.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s %s: %d %s", method, path, res.StatusCode, raw)
	}
	var out object
	_ = json.Unmarshal(raw, &out) // not every answer is an object
	return out, nil
}

// visit is what one user does who opens a chat: look at the old conversations,
// begin a new one, ask on, read it again, rate the answer.
func (d *dify) visit(user string) error {
	conversation, message := "", ""
	for _, step := range []func() (object, error){
		func() (object, error) { return d.try("GET", "/v1/parameters?user="+user, chatKey, nil) },
		func() (object, error) { return d.try("GET", "/v1/conversations?user="+user, chatKey, nil) },
	} {
		if _, err := step(); err != nil {
			return err
		}
	}
	for range 3 {
		got, err := d.try("POST", "/v1/chat-messages", chatKey, object{"query": "tell me", "user": user, "inputs": object{}, "conversation_id": conversation, "response_mode": "blocking"})
		if err != nil {
			return err
		}
		conversation, message = fmt.Sprint(got["conversation_id"]), fmt.Sprint(got["message_id"])
		if _, err := d.try("GET", "/v1/messages?user="+user+"&conversation_id="+conversation, chatKey, nil); err != nil {
			return err
		}
	}
	if _, err := d.try("POST", "/v1/messages/"+message+"/feedbacks", chatKey, object{"rating": "like", "user": user}); err != nil {
		return err
	}
	if _, err := d.try("GET", "/v1/conversations?user="+user, chatKey, nil); err != nil {
		return err
	}
	_, err := d.try("POST", "/v1/workflows/run", flowKey, object{"inputs": object{"query": "x"}, "user": user, "response_mode": "blocking"})
	return err
}

// learn puts a document into a knowledge base and waits until the worker, whose
// statements go through the other proxy, has worked on it.
func (d *dify) learn(name string) error {
	dataset := "/v1/datasets/" + difysim.SeedDatasetID("handbook")
	got, err := d.try("POST", dataset+"/document/create_by_text", datasetKey, object{"name": name, "text": strings.Repeat("A quorum is a majority.\n\n", 20), "indexing_technique": "economy"})
	if err != nil {
		return err
	}
	document, _ := got["document"].(map[string]any)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		status, err := d.try("GET", fmt.Sprint(dataset, "/documents/", got["batch"], "/indexing-status"), datasetKey, nil)
		if err != nil {
			return err
		}
		list, _ := status["data"].([]any)
		// Without a vector store it ends so, after everything that the database is for.
		if of, _ := list[0].(map[string]any); of["indexing_status"] == "error" {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the document is not indexed: %v", status)
		}
	}
	if _, err := d.try("GET", fmt.Sprint(dataset, "/documents/", document["id"], "/segments"), datasetKey, nil); err != nil {
		return err
	}
	return nil
}

// work lets users come and go, and one of them teaches.
func (d *dify) work(users, visits int) {
	d.t.Helper()
	var wg sync.WaitGroup
	for i := range users {
		wg.Go(func() {
			for j := range visits {
				err := d.visit(fmt.Sprint("user-", i))
				if i == 0 {
					err = errors.Join(err, d.learn(fmt.Sprint("document-", j)))
				}
				if err != nil {
					d.t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// applicationRead finds the application's read statements in a server's log.
var applicationRead = regexp.MustCompile(`(?i) dify@dify LOG:  statement: (?:SELECT|WITH|SHOW)\b[^\n]*`)

// readsOnPrimary are the application's read statements that the primary has run,
// as its own log has them.
func (c *cluster) readsOnPrimary() []string {
	var reads []string
	for _, line := range applicationRead.FindAllString(c.primary.Log(), -1) {
		if !strings.Contains(strings.ToUpper(line), "FOR UPDATE") {
			reads = append(reads, line[strings.Index(line, "statement: ")+len("statement: "):])
		}
	}
	return reads
}

// shareOnStandbys runs the workload through two proxies and returns which share
// of its read statements standbys have answered. What they ran in vain is
// counted where it was answered.
func shareOnStandbys(t *testing.T, mode string, users, visits int) float64 {
	t.Helper()
	c := newCluster(t)
	mustExec(t, c.direct(t), "CREATE TABLE probe ()")
	c.primary.Exec("ALTER ROLE dify SET log_statement = 'all'") // for connections from now on
	splitting := pgproxy.Splitting{Mode: mode, MaxStaleness: 100 * time.Millisecond}
	d, api, worker := newDify(t, c, func() (api, worker *proxy) { return c.proxy(t, splitting), c.proxy(t, splitting) })
	proxies := []*proxy{api, worker}
	var before []map[string]int
	for _, p := range proxies {
		before = append(before, p.allRouted())
	}
	old := len(c.readsOnPrimary())
	d.work(users, visits)
	standby := 0
	reasons := map[string]int{}
	for i, p := range proxies {
		for k, n := range p.allRouted() {
			n -= before[i][k]
			if k == "standby read" || k == "standby no_table" {
				standby += n
			}
			reasons[k] += n
		}
	}
	reads := c.readsOnPrimary()[old:]
	share := float64(standby) / float64(standby+len(reads))
	t.Logf("%s: %d read statements on standbys, %d on the primary: %.1f%%; %v", mode, standby, len(reads), 100*share, reasons)
	if t.Failed() || testing.Verbose() {
		seen := map[string]int{}
		for _, sql := range reads {
			seen[sql[:min(len(sql), 90)]]++
		}
		for sql, n := range seen {
			t.Logf("on the primary %5d × %s", n, sql)
		}
	}
	return share
}

func TestShareOfStandbys(t *testing.T) {
	if share := shareOnStandbys(t, pgproxy.SplittingFence, 4, 3); share < leastShare {
		t.Errorf("%.1f%% of the read statements ran on standbys", 100*share)
	}
}
