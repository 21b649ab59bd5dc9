package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// maxAnswer bounds what is read of one answer.
const maxAnswer = 16 << 20

// askTimeout bounds one question to Prometheus or Alertmanager.
const askTimeout = 5 * time.Second

// prometheus asks one server.
type prometheus struct {
	base string
	http *http.Client
}

// sample is one value of an instant query.
type sample struct {
	labels map[string]string
	value  float64
}

// line is one series of a range query: time in Unix seconds, and value.
type line struct {
	labels map[string]string
	points [][2]float64
}

// vector asks for the values now. Values that are no number are left out: a
// quantile of nothing, a share of nothing.
func (p *prometheus) vector(ctx context.Context, expr string) ([]sample, error) {
	var result []struct {
		Metric map[string]string  `json:"metric"`
		Value  [2]json.RawMessage `json:"value"`
	}
	if err := p.ask(ctx, "/api/v1/query", url.Values{"query": {expr}}, &result); err != nil {
		return nil, err
	}
	out := make([]sample, 0, len(result))
	for _, r := range result {
		v, err := number(r.Value[1])
		if err != nil {
			return nil, err
		}
		if finite(v) {
			out = append(out, sample{r.Metric, v})
		}
	}
	return out, nil
}

// scalar asks for a single value; nil when there is none.
func (p *prometheus) scalar(ctx context.Context, expr string) (*float64, error) {
	samples, err := p.vector(ctx, expr)
	if err != nil || len(samples) == 0 {
		return nil, err
	}
	return &samples[0].value, nil
}

// matrix asks for values at every step from start to end.
func (p *prometheus) matrix(ctx context.Context, expr string, start, end time.Time, step time.Duration) ([]line, error) {
	var result []struct {
		Metric map[string]string    `json:"metric"`
		Values [][2]json.RawMessage `json:"values"`
	}
	err := p.ask(ctx, "/api/v1/query_range", url.Values{
		"query": {expr}, "start": {unix(start)}, "end": {unix(end)}, "step": {promDuration(step)},
	}, &result)
	if err != nil {
		return nil, err
	}
	out := make([]line, 0, len(result))
	for _, r := range result {
		l := line{labels: r.Metric}
		for _, point := range r.Values {
			at, err := strconv.ParseFloat(string(point[0]), 64)
			if err != nil {
				return nil, fmt.Errorf("answer of Prometheus: time %s is no number", point[0])
			}
			v, err := number(point[1])
			if err != nil {
				return nil, err
			}
			if finite(v) {
				l.points = append(l.points, [2]float64{at, v})
			}
		}
		out = append(out, l)
	}
	return out, nil
}

// together asks all questions, a few at a time, and returns the first error.
// What has not been asked then is not asked any more.
func together(ctx context.Context, questions []func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan func(context.Context) error)
	var workers sync.WaitGroup
	for range parallelQueries {
		workers.Go(func() {
			for ask := range next {
				if err := ask(ctx); err != nil {
					cancel(err)
				}
			}
		})
	}
	for _, q := range questions {
		if ctx.Err() != nil {
			break
		}
		next <- q
	}
	close(next)
	workers.Wait()
	return context.Cause(ctx)
}

func unix(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) }

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// number reads a sample's value, which Prometheus writes as a string.
func number(raw json.RawMessage) (float64, error) {
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		return 0, fmt.Errorf("answer of Prometheus: value %s is no string", raw)
	}
	v, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return 0, fmt.Errorf("answer of Prometheus: value %q is no number", text)
	}
	return v, nil
}

func (p *prometheus) ask(ctx context.Context, path string, form url.Values, result any) error {
	var answer struct {
		Status string `json:"status"`
		Error  string `json:"error"`
		Data   struct {
			Result json.RawMessage `json:"result"`
		} `json:"data"`
	}
	status, err := getJSON(ctx, p.http, p.base+path+"?"+form.Encode(), &answer)
	if err != nil {
		return fmt.Errorf("ask Prometheus: %w", err)
	}
	if answer.Status != "success" {
		return fmt.Errorf("ask Prometheus: %s", strings.TrimSpace(status+" "+answer.Error))
	}
	if err := json.Unmarshal(answer.Data.Result, result); err != nil {
		return fmt.Errorf("answer of Prometheus: %w", err)
	}
	return nil
}

// getJSON reads a JSON answer of whatever status.
func getJSON(ctx context.Context, client *http.Client, address string, out any) (status string, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		// The query in the URL would fill the page.
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err
		}
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return resp.Status, err
	}
	if err := json.Unmarshal(body, out); err != nil {
		return resp.Status, fmt.Errorf("status %s, and no JSON", resp.Status)
	}
	return resp.Status, nil
}
