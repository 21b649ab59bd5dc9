package drill

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// dify answers like a Dify, and badly while down tells so.
func dify(down func() bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if down() {
			http.Error(w, "down", http.StatusBadGateway)
			return
		}
		if r.Method == http.MethodGet || r.ContentLength == 0 {
			fmt.Fprint(w, "{}")
			return
		}
		body := make([]byte, r.ContentLength)
		_, _ = r.Body.Read(body)
		if !strings.Contains(string(body), "streaming") {
			fmt.Fprint(w, "{}")
			return
		}
		fmt.Fprint(w, "event: ping\n\ndata: {\"event\":\"message\"}\n\ndata: {\"event\":\"message_end\"}\n\n")
	})
}

func sendFor(t *testing.T, url string, rate float64, d time.Duration) ([]Sample, time.Time) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	var mu sync.Mutex
	var samples []Sample
	Load{URL: url, AppKey: "app-test", Rate: rate, Timeout: 5 * time.Second}.run(ctx, func(s Sample) {
		mu.Lock()
		defer mu.Unlock()
		samples = append(samples, s)
	})
	return samples, time.Now()
}

func TestKnownOutageIsMeasured(t *testing.T) {
	var down atomic.Bool
	srv := httptest.NewServer(dify(down.Load))
	defer srv.Close()
	begun := time.AfterFunc(time.Second, func() { down.Store(true) })
	defer begun.Stop()
	ended := time.AfterFunc(1700*time.Millisecond, func() { down.Store(false) })
	defer ended.Stop()
	const rate = 200
	samples, end := sendFor(t, srv.URL, rate, 3*time.Second)
	got := longestOutage(samples, within(time.Second), time.Second/rate, end)
	// The timers of a busy machine are late by some milliseconds; 5% is the
	// precision that the report promises, twice that keeps the test calm.
	if want := 700 * time.Millisecond; got < want*9/10 || got > want*11/10 {
		t.Errorf("an outage of %v was measured as %v", want, got)
	}
}

func TestStalledServerDoesNotHideWaiting(t *testing.T) {
	// The server answers one request at a time and stalls for a second: an
	// open loop sees every request that fell due meanwhile as late.
	var once sync.Once
	var gate sync.Mutex
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		gate.Lock()
		defer gate.Unlock()
		once.Do(func() {
			timer := time.NewTimer(time.Second)
			defer timer.Stop()
			<-timer.C
		})
		dify(func() bool { return false }).ServeHTTP(w, r)
	}))
	defer srv.Close()
	samples, _ := sendFor(t, srv.URL, 100, 2*time.Second)
	if got := summarise(samples, within(200*time.Millisecond)); got.Slow < 60 {
		t.Errorf("slow = %d of %d, want at least 60: about 80 requests fell due while the server stalled", got.Slow, got.Total)
	}
}

func TestReadStream(t *testing.T) {
	tests := []struct {
		name, body string
		wantErr    error
		wantFirst  bool
	}{
		{"whole", "event: ping\n\ndata: {\"event\":\"message\"}\n\ndata: {\"event\":\"message_end\"}\n\n", nil, true},
		{"cut after content", "data: {\"event\":\"message\"}\n\n", errStreamCut, true},
		{"cut before content", "event: ping\n\n", errStreamCut, false},
		{"error event", "data: {\"event\":\"error\",\"code\":\"x\"}\n\n", errStreamError, false},
		{"empty", "", errStreamCut, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			first, err := readStream(strings.NewReader(tt.body))
			if !errors.Is(err, tt.wantErr) || first.IsZero() == tt.wantFirst {
				t.Errorf("readStream = %v, %v; want first event seen: %v, error: %v", first, err, tt.wantFirst, tt.wantErr)
			}
		})
	}
}
