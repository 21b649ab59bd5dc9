//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"fournines/bench/result"
	"fournines/bench/rig"
)

// The runner starts its own program as backend and client; here that is the test.
func TestMain(m *testing.M) {
	if isRole, err := runRole(os.Args[1:]); isRole {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// quietPlace keeps the files of a run, and its name in the command lines of
// processes, where the check for leftovers looks.
func quietPlace(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fournines-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Setenv("TMPDIR", dir)
	return dir
}

// nothingLeft checks that a run has removed its files and ended its processes.
func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	if left, _ := filepath.Glob(filepath.Join(dir, "fournines-bench-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range lines {
		if b, err := os.ReadFile(file); err == nil && bytes.Contains(b, []byte(dir+"/fournines-bench-")) {
			t.Errorf("still runs: %q", b)
		}
	}
}

func buildOurs(t *testing.T, dir string) string {
	t.Helper()
	program := filepath.Join(dir, "fournines")
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", program, "fournines/cmd/fournines")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build ours: %v\n%s", err, out)
	}
	return program
}

// TestQuickRun runs the whole thing with small loads, against nginx if it is there.
func TestQuickRun(t *testing.T) {
	dir := quietPlace(t)
	file := filepath.Join(dir, "gateway.json")
	peer := "none"
	if rig.InPath("nginx") != "" {
		peer = "nginx"
	}
	var table, progress strings.Builder
	err := runCommand(t.Context(), []string{"-quick", "-peers", peer, "-ours", buildOurs(t, dir), "-o", file}, &table, &progress)
	if err != nil {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	t.Log(progress.String(), table.String())
	s, err := result.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(); err != nil || s.Suite != "gateway" || s.Runs != 1 || len(s.Missing) > 0 {
		t.Errorf("the result is not complete: %v, %+v", err, s)
	}
	// Wide bounds: they find a wrong unit or divisor, not a slow machine.
	bounds := map[string][2]float64{
		metricRequests: {200, 1e6}, metricCPUPerEvent: {0.5, 5000}, metricAddedP99: {-60e3, 60e3},
		metricIdle: {0.5, 1000}, metricChurn: {100, 1e6},
	}
	if len(s.Rows) != len(bounds) {
		t.Errorf("%d rows, not %d", len(s.Rows), len(bounds))
	}
	for _, row := range s.Rows {
		figures := map[string]result.Stat{"ours": row.Ours}
		for name, st := range row.Peers {
			figures[name] = st
		}
		if want := 2; peer != "none" && len(figures) != want {
			t.Errorf("%s: %v took part", row.Metric, figures)
		}
		for name, st := range figures {
			if b := bounds[row.Metric]; st.Median < b[0] || st.Median > b[1] {
				t.Errorf("%s of %s is %v, not between %v and %v", row.Metric, name, st.Median, b[0], b[1])
			}
		}
	}
	if page, err := os.ReadFile(filepath.Join(dir, "gateway.md")); err != nil || !strings.Contains(string(page), metricIdle) {
		t.Errorf("the page: %v\n%s", err, page)
	}
	nothingLeft(t, dir)
}

// cancelOnWrite ends a run at its first word.
type cancelOnWrite struct{ cancel context.CancelFunc }

func (c cancelOnWrite) Write(p []byte) (int, error) {
	c.cancel()
	return len(p), nil
}

func TestInterruptedRunLeavesNothing(t *testing.T) {
	dir := quietPlace(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := runCommand(ctx, []string{"-quick", "-peers", "none", "-ours", buildOurs(t, dir), "-o", filepath.Join(dir, "x.json")}, io.Discard, cancelOnWrite{cancel})
	if err == nil || ctx.Err() == nil {
		t.Errorf("the run went on to its end: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "x.json")); err == nil {
		t.Error("half a run has a result")
	}
	nothingLeft(t, dir)
}

// TestWrongAnswersDisqualify puts faulty proxies in front of the backend.
func TestWrongAnswersDisqualify(t *testing.T) {
	quietPlace(t)
	b, err := newBench(t.Context(), quickSizes)
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	// through is a proxy that changes the bodies of answers.
	through := func(change func([]byte) []byte) http.Handler {
		to := &url.URL{Scheme: "http", Host: b.backends[1].String()}
		proxy := &httputil.ReverseProxy{
			Rewrite:  func(r *httputil.ProxyRequest) { r.SetURL(to) },
			ErrorLog: log.New(io.Discard, "", 0), // clients leave in the middle
			ModifyResponse: func(r *http.Response) error {
				r.Body = &changed{ReadCloser: r.Body, change: change}
				r.Header.Del("Content-Length")
				r.ContentLength = -1
				return nil
			},
		}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// The backend answers before the proxy has looked for the end of the
			// request's body; the server must not have closed it by then.
			if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
				t.Error(err)
			}
			proxy.ServeHTTP(w, r)
		})
	}
	same := func(b []byte) []byte { return b }
	cut := func(b []byte) []byte {
		if n := bytes.Count(b, []byte("00000000000000a")); n > 0 {
			return nil // events 10 and above are cut out, or reach nobody
		}
		return b
	}
	for name, tc := range map[string]struct {
		kind    string
		handler http.Handler
		want    string // part of the reason; "" is a good proxy
	}{
		"good requests": {kindRequests, through(same), ""},
		"good churn":    {kindChurn, through(same), ""},
		"good streams":  {kindStreams, through(same), ""},
		"refuses":       {kindRequests, http.NotFoundHandler(), "404"},
		"changes the answer": {kindRequests, through(func(b []byte) []byte {
			return bytes.Replace(b, []byte("message_id"), []byte("message-id"), 1)
		}), "answered"},
		"gives the answer of another": {kindRequests, through(func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"answer":"0`), []byte(`"answer":"1`), 1)
		}), "the answer is that of request"},
		"no event stream": {kindStreams, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }), "a stream begins with"},
		"loses events":    {kindStreams, through(cut), "was due"},
		"ends streams": {kindStreams, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
		}), "ended"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(tc.handler)
			defer server.Close()
			defer server.CloseClientConnections()
			to := netip.MustParseAddrPort(strings.TrimPrefix(server.URL, "http://"))
			d, err := b.client(t.Context(), tc.kind, to, 4, 100)
			if err == nil {
				defer d.stop()
			}
			if tc.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if r, err := d.tell(t.Context(), "end", "ended"); err != nil || r.Count < 4 {
					t.Errorf("%+v, %v", r, err)
				}
				return
			}
			if err == nil {
				// It began well; the reason comes later.
				_, err = d.expect(t.Context(), "never", 30*time.Second)
			}
			if err == nil || !strings.Contains(err.Error(), "disqualified") || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want it to be disqualified for %q", err, tc.want)
			}
		})
	}
}

// changed is a body that is not what it was.
type changed struct {
	io.ReadCloser
	change func([]byte) []byte
}

func (c *changed) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	return copy(p, c.change(p[:n])), err
}

func TestUnknownArguments(t *testing.T) {
	for name, args := range map[string][]string{
		"row": {"-rows", "speed"}, "peer": {"-peers", "apache"}, "runs": {"-runs", "-1"}, "word": {"now"}, "ours": {"-ours", "/nowhere"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := runCommand(t.Context(), args, io.Discard, io.Discard); err == nil {
				t.Error("was accepted")
			}
		})
	}
}
