package dify

import (
	"strings"
	"testing"
)

func TestTokens(t *testing.T) {
	big := strings.Repeat(`"x\"total_tokens\":9,",`, 1000)
	for _, tc := range []struct {
		name, body string
		want       int64
		ok         bool
	}{
		{"the end of a chat", `{"event":"message_end","metadata":{"usage":{"prompt_tokens":3,"total_tokens":12}}}`, 12, true},
		{"the end of a workflow", `{"event":"workflow_finished","data":{"outputs":{"total_tokens":7},"total_tokens":34}}`, 34, true},
		{"a blocking chat", `{"event":"message","answer":"a","metadata":{"usage":{"total_tokens":5}},"created_at":1}`, 5, true},
		{"none used", `{"data":{"total_tokens":0}}`, 0, true},
		{"large outputs", `{"data":{"outputs":[` + big + `1],"total_tokens":8}}`, 8, true},
		{"no usage", `{"event":"error"}`, 0, false},
		{"null", `{"metadata":{"usage":null},"data":{"total_tokens":null}}`, 0, false},
		{"negative", `{"data":{"total_tokens":-1}}`, 0, false},
		{"absurd", `{"data":{"total_tokens":1e300}}`, 0, false},
		{"a text", `{"data":{"total_tokens":"9"}}`, 0, false},
		{"cut", `{"data":{"total_tokens":9`, 0, false},
		{"nothing", ``, 0, false},
	} {
		if got, ok := Tokens([]byte(tc.body)); got != tc.want || ok != tc.ok {
			t.Errorf("%s: got %d, %v", tc.name, got, ok)
		}
		if got, ok := EventTokens([]byte("event: x\ndata: " + tc.body + "\n\n")); got != tc.want || ok != tc.ok {
			t.Errorf("%s, as an event: got %d, %v", tc.name, got, ok)
		}
	}
}

func FuzzTokens(f *testing.F) {
	f.Add([]byte(`{"metadata":{"usage":{"total_tokens":5}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, ok := Tokens(b); n < 0 || n > maxTokens || !ok && n != 0 {
			t.Fatalf("%q: %d, %v", b, n, ok)
		}
	})
}
