package difysim

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// maxTokens bounds an answer.
const maxTokens = 100000

// filler is what follows the echo of the question.
var filler = strings.Fields(`Lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod
tempor incididunt ut labore et dolore magna aliqua ut enim ad minim veniam quis nostrud exercitation
ullamco laboris nisi ut aliquip ex ea commodo consequat`)

// answerTokens returns the answer to a query: always the same for the same query
// and length. Joined, the tokens are the answer's text.
func answerTokens(query string, n int) []string {
	words := append([]string{"You", "asked:"}, strings.Fields(query)...)
	out := make([]string, n)
	for i := range out {
		w := filler[i%len(filler)]
		if i < len(words) {
			w = words[i]
		}
		if i < n-1 {
			w += " "
		}
		out[i] = w
	}
	return out
}

// shape is how one request is to be answered: the configuration, changed by the
// inputs that tests set.
type shape struct {
	Tokens     int           `json:"tokens"`
	Delay      time.Duration `json:"delay"`
	PerToken   time.Duration `json:"per_token"`
	CPU        time.Duration `json:"cpu"`
	Error      string        `json:"error"`
	DatasetIDs []string      `json:"dataset_ids"`
}

// failures are the errors that sim_error can ask for, with their status.
func failureStatus(code string) (int, bool) {
	switch code {
	case "invalid_param", "provider_not_initialize", "provider_quota_exceeded", "model_currently_not_support", "completion_request_error":
		return 400, true
	case "internal_server_error":
		return 500, true
	default:
		return 0, false
	}
}

// shapeOf reads the sim_ inputs; wrong ones are refused, so that a test that
// misspells notices.
func (b *backend) shapeOf(inputs map[string]json.RawMessage) (shape, error) {
	s := shape{
		Tokens: b.cfg.Answer.Tokens, Delay: b.cfg.Answer.FirstTokenDelay, CPU: b.cfg.CPU.Cost,
		PerToken: time.Duration(float64(time.Second) / b.cfg.Answer.TokensPerSecond),
	}
	number := func(name string, lo, hi float64, set func(float64)) error {
		raw, ok := inputs[name]
		if !ok {
			return nil
		}
		var n json.Number
		if err := json.Unmarshal(raw, &n); err != nil {
			return invalidParam("%s in inputs must be a number", name)
		}
		f, err := n.Float64()
		if err != nil || f < lo || f > hi {
			return invalidParam("%s in inputs must be a number from %v to %v", name, lo, hi)
		}
		set(f)
		return nil
	}
	for _, n := range []struct {
		name   string
		lo, hi float64
		set    func(float64)
	}{
		{"sim_tokens", 1, maxTokens, func(f float64) { s.Tokens = int(f) }},
		{"sim_delay_ms", 0, 3600e3, func(f float64) { s.Delay = time.Duration(f * float64(time.Millisecond)) }},
		{"sim_tokens_per_second", 0.01, 1e6, func(f float64) { s.PerToken = time.Duration(float64(time.Second) / f) }},
		{"sim_cpu_ms", 0, 60e3, func(f float64) { s.CPU = time.Duration(f * float64(time.Millisecond)) }},
	} {
		if err := number(n.name, n.lo, n.hi, n.set); err != nil {
			return shape{}, err
		}
	}
	for name := range inputs {
		switch name {
		case "sim_tokens", "sim_delay_ms", "sim_tokens_per_second", "sim_cpu_ms":
		case "sim_error":
			if err := json.Unmarshal(inputs[name], &s.Error); err != nil {
				return shape{}, invalidParam("sim_error in inputs must be a text")
			}
			if _, ok := failureStatus(s.Error); !ok {
				return shape{}, invalidParam("sim_error in inputs: %q is not an error code of the simulator", s.Error)
			}
		case "sim_dataset_ids":
			if err := json.Unmarshal(inputs[name], &s.DatasetIDs); err != nil {
				return shape{}, invalidParam("sim_dataset_ids in inputs must be a list of dataset ids")
			}
			for _, id := range s.DatasetIDs {
				if err := uuidText("sim_dataset_ids", id); err != nil {
					return shape{}, err
				}
			}
		default:
			if strings.HasPrefix(name, "sim_") {
				return shape{}, invalidParam("%s in inputs is not known to the simulator", name)
			}
		}
	}
	return s, nil
}

// usage is Dify's account of a model call.
func usage(query string, completion int, latency time.Duration) object {
	const promptPrice, completionPrice = 0.0015, 0.002 // per 1000 tokens
	prompt := len(strings.Fields(query)) + 10
	pp, cp := float64(prompt)*promptPrice/1000, float64(completion)*completionPrice/1000
	money := func(f float64) string { return fmt.Sprintf("%.7f", f) }
	return object{
		"prompt_tokens", prompt, "prompt_unit_price", "0.0015", "prompt_price_unit", "0.001", "prompt_price", money(pp),
		"completion_tokens", completion, "completion_unit_price", "0.002", "completion_price_unit", "0.001",
		"completion_price", money(cp), "total_tokens", prompt + completion, "total_price", money(pp + cp),
		"currency", "USD", "latency", latency.Seconds(),
	}
}

func promptTokens(query string) int { return len(strings.Fields(query)) + 10 }
