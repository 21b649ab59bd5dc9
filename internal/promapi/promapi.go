// Package promapi asks a Prometheus server over its HTTP API.
package promapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 16 << 20

// Client asks one server. It may be used by several goroutines at once.
type Client struct {
	base string
	http *http.Client
}

// Sample is one series of an answer.
type Sample struct {
	Labels map[string]string
	Value  float64
}

// New returns a client of the server at base, "http://127.0.0.1:9090".
func New(base string) (*Client, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("%q is not the URL of a Prometheus", base)
	}
	return &Client{base: strings.TrimSuffix(base, "/"), http: &http.Client{Timeout: 30 * time.Second}}, nil
}

// Query evaluates an expression at a moment. An expression that selects nothing
// has no samples and no error.
func (c *Client) Query(ctx context.Context, expr string, at time.Time) ([]Sample, error) {
	form := url.Values{"query": {expr}, "time": {strconv.FormatFloat(float64(at.UnixMilli())/1000, 'f', 3, 64)}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+"/api/v1/query", strings.NewReader(form.Encode()))
	if err != nil {
		return nil, fmt.Errorf("query Prometheus: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("query Prometheus: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("query Prometheus: %w", err)
	}
	var answer struct {
		Error string `json:"error"`
		Data  struct {
			ResultType string          `json:"resultType"`
			Result     json.RawMessage `json:"result"`
		} `json:"data"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("query Prometheus: %s: no answer of a Prometheus: %w", resp.Status, err)
	}
	if answer.Error != "" {
		return nil, fmt.Errorf("query Prometheus: %s", answer.Error)
	}
	switch answer.Data.ResultType {
	case "vector":
		var vector []struct {
			Metric map[string]string `json:"metric"`
			Value  point             `json:"value"`
		}
		if err := json.Unmarshal(answer.Data.Result, &vector); err != nil {
			return nil, fmt.Errorf("query Prometheus: %w", err)
		}
		samples := make([]Sample, 0, len(vector))
		for _, s := range vector {
			samples = append(samples, Sample{Labels: s.Metric, Value: float64(s.Value)})
		}
		return samples, nil
	case "scalar":
		var p point
		if err := json.Unmarshal(answer.Data.Result, &p); err != nil {
			return nil, fmt.Errorf("query Prometheus: %w", err)
		}
		return []Sample{{Value: float64(p)}}, nil
	}
	return nil, fmt.Errorf("query Prometheus: the result is a %q, not a vector", answer.Data.ResultType)
}

// point is a value as Prometheus writes it: [time, "value"].
type point float64

// UnmarshalJSON implements json.Unmarshaler.
func (p *point) UnmarshalJSON(text []byte) error {
	var pair [2]json.RawMessage
	if err := json.Unmarshal(text, &pair); err != nil {
		return err
	}
	var value string
	if err := json.Unmarshal(pair[1], &value); err != nil {
		return errors.New("a value that is no text")
	}
	v, err := strconv.ParseFloat(value, 64)
	*p = point(v)
	return err
}
