package drill

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Load is what a drill sends while the fault is on: requests at a constant
// rate, whatever the answers are (an open loop).
type Load struct {
	// URL is the gateway's base address, for example http://127.0.0.1:8480.
	URL string
	// AppKey authorises the requests as one application's key.
	AppKey string
	// Rate is in requests per second; every fourth request is a stream, every
	// fourth a blocking chat, the rest read.
	Rate float64
	// Timeout bounds each request; one that takes longer has failed.
	Timeout time.Duration
}

// run sends the load until ctx ends, waits for the requests in flight, and
// hands every outcome to record. record is called from many goroutines.
func (l Load) run(ctx context.Context, record func(Sample)) {
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: l.Timeout}).DialContext,
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     10 * time.Second,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	spacing := l.spacing()
	start := time.Now()
	var inFlight sync.WaitGroup
	defer inFlight.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for n := 0; ; n++ {
		due := start.Add(time.Duration(n) * spacing)
		timer.Reset(time.Until(due))
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		inFlight.Go(func() {
			// A request in flight when the load ends is still measured.
			rctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), due.Add(l.Timeout))
			defer cancel()
			record(l.send(rctx, client, classOf(n), due, n))
		})
	}
}

func (l Load) spacing() time.Duration { return time.Duration(float64(time.Second) / l.Rate) }

func classOf(n int) Class {
	switch n % 4 {
	case 0:
		return Stream
	case 2:
		return Post
	default:
		return Idempotent
	}
}

// every tells which share of the load is of the class: one request in so many.
func every(class Class) int {
	if class == Idempotent {
		return 2
	}
	return 4
}

func (l Load) send(ctx context.Context, client *http.Client, class Class, due time.Time, n int) Sample {
	s := Sample{Class: class, Due: due}
	req, err := l.request(ctx, class, n)
	if err != nil {
		s.Err = "bad request: " + err.Error()
		return s
	}
	resp, err := client.Do(req)
	if err != nil {
		s.Latency, s.Err = time.Since(due), reason(err)
		return s
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
		s.Latency, s.Err = time.Since(due), fmt.Sprintf("status %d", resp.StatusCode)
		return s
	}
	if class == Stream {
		first, err := readStream(resp.Body)
		s.Latency = first.Sub(due)
		if err != nil {
			s.Latency, s.Err = time.Since(due), reason(err)
		}
		return s
	}
	_, err = io.Copy(io.Discard, resp.Body)
	s.Latency = time.Since(due)
	if err != nil {
		s.Err = reason(err)
	}
	return s
}

func (l Load) request(ctx context.Context, class Class, n int) (*http.Request, error) {
	user := fmt.Sprintf("drill-%d", n%50)
	if class == Idempotent {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.URL+"/v1/parameters?user="+user, nil)
		if err == nil {
			req.Header.Set("Authorization", "Bearer "+l.AppKey)
		}
		return req, err
	}
	mode := "blocking"
	if class == Stream {
		mode = "streaming"
	}
	body, err := json.Marshal(map[string]any{
		"inputs": map[string]any{}, "query": "how are you?", "user": user, "response_mode": mode,
	})
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.URL+"/v1/chat-messages", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+l.AppKey)
	req.Header.Set("Content-Type", "application/json")
	return req, nil
}

var (
	errStreamCut   = errors.New("stream cut")
	errStreamError = errors.New("stream error event")
)

// readStream reads Dify's server-sent events to the end and returns when the
// first event with content came. A stream that ends without message_end was
// cut, although its status was 200.
func readStream(body io.Reader) (first time.Time, err error) {
	scanner := bufio.NewScanner(body)
	scanner.Buffer(make([]byte, 16<<10), 4<<20)
	for scanner.Scan() {
		data, ok := strings.CutPrefix(scanner.Text(), "data: ")
		if !ok {
			continue
		}
		var event struct {
			Event string `json:"event"`
			Code  string `json:"code"`
		}
		if err := json.Unmarshal([]byte(data), &event); err != nil {
			return first, fmt.Errorf("stream event is not JSON")
		}
		switch event.Event {
		case "ping":
			continue
		case "error":
			return first, errStreamError
		case "message_end":
			// Reading on to the end lets the connection be used again.
			_, _ = io.Copy(io.Discard, body)
			return first, nil
		}
		if first.IsZero() {
			first = time.Now()
		}
	}
	if err := scanner.Err(); err != nil {
		return first, err
	}
	return first, errStreamCut
}

// reason reduces an error to a short stable text, so that failures can be counted.
func reason(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, errStreamCut), errors.Is(err, errStreamError):
		return err.Error()
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection lost"
	}
	return err.Error()
}
