package drill

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Load is what a drill sends while the fault is on: requests at a constant
// rate, whatever the answers are (an open loop), and on top of them, when asked
// for, a number of event streams that are kept open.
type Load struct {
	// URL is the gateway's base address, for example http://127.0.0.1:8480.
	URL string
	// AppKey authorises the requests as one application's key.
	AppKey string
	// Rate is in requests per second. Without Streams every fourth request is
	// a stream, every fourth a blocking chat, the rest read; with Streams every
	// fourth is a blocking chat and the rest read.
	Rate float64
	// Timeout bounds each request; one that takes longer has failed.
	Timeout time.Duration
	// Streams is how many event streams are kept open besides; one that ends
	// is followed by the next at once. 0 for none.
	Streams int
	// Ramp is the time in which the first Streams are opened; 0 to 1m, default
	// at once.
	Ramp time.Duration
	// ChatTokens and StreamTokens are how long the answers of a blocking chat
	// and of a kept stream are to be, asked from a simulator in its inputs;
	// the lengths of streams vary around it by half. 0 leaves that to the other
	// side.
	ChatTokens, StreamTokens int
}

// repeatable says for which classes HTTP lets a client repeat a request by
// itself when the connection breaks (RFC 9110, section 9.2.2).
func repeatable(c Class) bool { return c == Idempotent }

// streamPause keeps a client whose stream was refused from asking again at once.
const streamPause = 200 * time.Millisecond

// sender is a load that is running.
type sender struct {
	Load
	client *http.Client // keeps connections
	fresh  *http.Client // one connection per request
	record func(Sample)
}

// Run sends the load until ctx ends, waits for the requests in flight, breaks
// off the kept streams, and hands every outcome to record, which is called from
// many goroutines.
func (l Load) Run(ctx context.Context, record func(Sample)) {
	dial := (&net.Dialer{Timeout: l.Timeout}).DialContext
	kept := &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 64, IdleConnTimeout: 10 * time.Second}
	defer kept.CloseIdleConnections()
	single := &http.Transport{DialContext: dial, DisableKeepAlives: true}
	defer single.CloseIdleConnections()
	s := &sender{Load: l, client: &http.Client{Transport: kept}, fresh: &http.Client{Transport: single}, record: record}
	var running sync.WaitGroup
	defer running.Wait()
	for i := range l.Streams {
		running.Go(func() { s.keepStream(ctx, i) })
	}
	s.openLoop(ctx, &running)
}

// openLoop sends requests when they fall due, until ctx ends.
func (s *sender) openLoop(ctx context.Context, running *sync.WaitGroup) {
	spacing := s.spacing()
	start := time.Now()
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
		running.Go(func() {
			// A request in flight when the load ends is still measured.
			rctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), due.Add(s.Timeout))
			defer cancel()
			s.record(s.ask(rctx, s.classOf(n), due, n))
		})
	}
}

// keepStream has one stream open at any time until ctx ends.
func (s *sender) keepStream(ctx context.Context, n int) {
	wait := time.Duration(0)
	if s.Streams > 0 {
		wait = s.Ramp * time.Duration(n) / time.Duration(s.Streams)
	}
	for ; ; n += s.Streams {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		wait = 0
		rctx, cancel := context.WithTimeout(ctx, s.Timeout)
		got := s.ask(rctx, Stream, time.Now(), n)
		cancel()
		if ctx.Err() != nil && got.End == StreamRefused {
			return // it was just being opened
		}
		s.record(got)
		if got.End == StreamRefused {
			wait = streamPause/2 + rand.N(streamPause)
		}
	}
}

func (l Load) spacing() time.Duration { return time.Duration(float64(time.Second) / l.Rate) }

func (l Load) classOf(n int) Class {
	switch {
	case n%4 == 2:
		return Post
	case n%4 == 0 && l.Streams == 0:
		return Stream
	default:
		return Idempotent
	}
}

// every tells which share of the load is of the class: one request in so many.
// It is 0 for streams that are kept open, which have no schedule.
func (l Load) every(class Class) int {
	switch {
	case class == Idempotent:
		return 2
	case class == Stream && l.Streams > 0:
		return 0
	}
	return 4
}

// ask sends a request, and once more on a new connection when its connection
// broke and HTTP allows that. What the first attempt met is kept.
func (s *sender) ask(ctx context.Context, class Class, due time.Time, n int) Sample {
	got, broken := s.send(ctx, s.client, class, due, n)
	if broken && repeatable(class) && ctx.Err() == nil {
		first := got.Err
		got, _ = s.send(ctx, s.fresh, class, due, n)
		got.FirstErr = first
	}
	got.Done = time.Now()
	return got
}

// send makes one request; broken tells that there was no answer because the
// connection could not be had or broke.
func (s *sender) send(ctx context.Context, client *http.Client, class Class, due time.Time, n int) (got Sample, broken bool) {
	got = Sample{Class: class, Due: due}
	fail := func(text string) {
		got.Latency, got.Err = time.Since(due), text
		if class == Stream {
			got.End = StreamRefused
		}
	}
	tokens := s.tokens(class)
	// The library repeats by itself what it sent on a connection that it had
	// kept and that turned out to be dead.
	var connections atomic.Int64
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connections.Add(1) }})
	req, err := s.request(ctx, class, n, tokens)
	if err != nil {
		fail("bad request: " + err.Error())
		return got, false
	}
	resp, err := client.Do(req)
	if connections.Load() > 1 {
		got.FirstErr = "repeated by the HTTP library"
	}
	if err != nil {
		fail(reason(err))
		return got, ctx.Err() == nil
	}
	defer resp.Body.Close()
	got.Instance, got.Gateway = resp.Header.Get("X-Dify-Instance"), resp.Header.Get("X-Fournines-Zone")
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		var said struct {
			Code string `json:"code"`
		}
		if json.Unmarshal(body, &said) == nil {
			got.Code = said.Code
		}
		fail(fmt.Sprintf("status %d", resp.StatusCode))
		return got, false
	}
	if class == Stream {
		var r streamReader
		err := r.readStream(resp.Body, tokens)
		got.End, got.Code = endOf(ctx, err), r.code
		got.Latency = time.Since(due)
		if !r.first.IsZero() {
			got.Latency = r.first.Sub(due)
		}
		if err != nil && got.End != StreamOpen {
			got.Err = reason(err)
			if r.first.IsZero() {
				got.Latency = time.Since(due)
			}
		}
		return got, false
	}
	_, err = io.Copy(io.Discard, resp.Body)
	got.Latency = time.Since(due)
	if err != nil {
		got.Err = reason(err)
	}
	return got, err != nil && ctx.Err() == nil
}

// tokens is how long the answer is to be; 0 leaves it to the other side.
func (s *sender) tokens(class Class) int {
	switch {
	case class == Post:
		return s.ChatTokens
	case class == Stream && s.StreamTokens > 1:
		return s.StreamTokens/2 + rand.IntN(s.StreamTokens)
	}
	return 0
}

func (s *sender) request(ctx context.Context, class Class, n, tokens int) (*http.Request, error) {
	user := fmt.Sprintf("drill-%d", n%50)
	if class == Idempotent {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/v1/parameters?user="+user, nil)
		if err == nil {
			req.Header.Set("Authorization", "Bearer "+s.AppKey)
		}
		return req, err
	}
	mode := "blocking"
	if class == Stream {
		mode = "streaming"
	}
	inputs := map[string]any{}
	if tokens > 0 {
		inputs["sim_tokens"] = tokens
	}
	body, err := json.Marshal(map[string]any{
		"inputs": inputs, "query": "how are you?", "user": user, "response_mode": mode,
	})
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+"/v1/chat-messages", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+s.AppKey)
	req.Header.Set("Content-Type", "application/json")
	return req, nil
}

// reason reduces an error to a short stable text, so that failures can be counted.
func reason(err error) string {
	var timeout net.Error
	var broken malformed
	switch {
	case errors.Is(err, errStreamCut), errors.Is(err, errStreamError), errors.As(err, &broken):
		return err.Error()
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection lost"
	}
	return err.Error()
}
