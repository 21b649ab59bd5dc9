package jobs

import (
	"encoding/base64"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParsePrefer(t *testing.T) {
	cases := []struct {
		name  string
		lines []string
		want  preference
	}{
		{"none", nil, preference{}},
		{"plain", []string{"respond-async"}, preference{async: true}},
		{"in a list", []string{"return=minimal, Respond-Async, wait=10"}, preference{async: true}},
		{"second line", []string{"wait=1", "respond-async"}, preference{async: true}},
		{"repeat", []string{"respond-async; foo=bar; Repeat"}, preference{async: true, repeat: true}},
		{"another's parameter", []string{"wait=1; repeat, respond-async"}, preference{async: true}},
		{"the first one counts", []string{"respond-async, respond-async; repeat"}, preference{async: true}},
		{"inside quotes", []string{`x="a, respond-async", y`}, preference{}},
		{"escaped quote", []string{`x="\", respond-async"`}, preference{}},
		{"longer word", []string{"respond-asynchronously"}, preference{}},
		{"empty items", []string{",,;,"}, preference{}},
	}
	for _, tc := range cases {
		if got := parsePrefer(http.Header{"Prefer": tc.lines}); got != tc.want {
			t.Errorf("%s: got %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

func FuzzParsePrefer(f *testing.F) {
	f.Add(`return=minimal, respond-async; repeat="yes"`)
	f.Add(`x="\`)
	f.Fuzz(func(t *testing.T, s string) {
		p := parsePrefer(http.Header{"Prefer": {s}})
		if p.async && !strings.Contains(strings.ToLower(s), "respond-async") {
			t.Fatalf("%q prefers an asynchronous answer", s)
		}
		if p.repeat && !p.async {
			t.Fatalf("%q: repeat without respond-async", s)
		}
	})
}

func writeSecret(t *testing.T, mode os.FileMode, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSealer(t *testing.T) {
	oldKey, newKey := NewKey(), NewKey()
	old, err := loadSealer(writeSecret(t, 0o600, "# the old one", oldKey))
	if err != nil {
		t.Fatal(err)
	}
	both, err := loadSealer(writeSecret(t, 0o600, newKey, oldKey))
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := old.box("j1").seal([]byte("hello"), labelEvent)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := both.box("j1").open(sealed, labelEvent); err != nil || string(got) != "hello" {
		t.Errorf("after a change of keys: %q, %v", got, err)
	}
	later, err := both.box("j1").seal([]byte("hello"), labelEvent)
	if err != nil {
		t.Fatal(err)
	}
	for name, open := range map[string]func() ([]byte, error){
		"another job":   func() ([]byte, error) { return old.box("j2").open(sealed, labelEvent) },
		"another label": func() ([]byte, error) { return old.box("j1").open(sealed, labelResult) },
		"unknown key":   func() ([]byte, error) { return old.box("j1").open(later, labelEvent) },
		"cut":           func() ([]byte, error) { return old.box("j1").open(sealed[:len(sealed)-1], labelEvent) },
		"nothing":       func() ([]byte, error) { return old.box("j1").open(nil, labelEvent) },
	} {
		if got, err := open(); !errors.Is(err, errSealed) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestKeyFilesAreChecked(t *testing.T) {
	for name, path := range map[string]string{
		"readable by others": writeSecret(t, 0o644, NewKey()),
		"empty":              writeSecret(t, 0o600, "# nothing"),
		"too short":          writeSecret(t, 0o600, "abcd"),
		"not there":          filepath.Join(t.TempDir(), "x"),
	} {
		if _, err := loadSealer(path); err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "abcd") {
			t.Errorf("%s: the error shows the key: %v", name, err)
		}
	}
}

func TestIDs(t *testing.T) {
	for q := range queues {
		id := newID(q)
		if got, ok := queueOf(id); !ok || got != q {
			t.Errorf("%s: queue %d, %v", id, got, ok)
		}
		got, gen, ok := parseDelivery(delivery(id, 7))
		if got != id || gen != 7 || !ok {
			t.Errorf("delivery of %s: %s %d %v", id, got, gen, ok)
		}
	}
	for _, bad := range []string{"", "j", "j8" + strings.Repeat("a", 32), "j0" + strings.Repeat("A", 32), "j0" + strings.Repeat("a", 33), "j0{" + strings.Repeat("a", 31)} {
		if _, ok := queueOf(bad); ok {
			t.Errorf("%q is an id", bad)
		}
	}
}

func TestStreamingBody(t *testing.T) {
	for body, want := range map[string]string{
		`{"response_mode":"blocking","inputs":{"n":12345678901234567890}}`: `{"response_mode":"streaming","inputs":{"n":12345678901234567890}}`,
		`{"response_mode":"streaming","query":"q"}`:                        `{"response_mode":"streaming","query":"q"}`,
		`{"query":"q"}`: `{"query":"q","response_mode":"streaming"}`,
		"":              "", "[]": "", "null": "", `"x"`: "", "{": "", `{"response_mode":"other"}`: "",
	} {
		if got, ok := streamingBody([]byte(body)); string(got) != want || ok != (want != "") {
			t.Errorf("%s: got %s, %v", body, got, ok)
		}
	}
}

func TestClusterView(t *testing.T) {
	const nodes = `m1 10.0.0.1:6379@16379 master - 0 1 1 connected 0-5460 [5461->-m2]
m2 10.0.0.2:6379@16379 myself,master - 0 1 2 connected 5461 5463-10922
m3 10.0.0.3:6379@16379 master,fail - 1 1 3 disconnected
r3 10.0.0.6:6379@16379 master - 0 1 4 connected 10923-16383
r1 10.0.0.4:6379@16379 slave,fail m1 1 1 1 disconnected
r2 10.0.0.5:6379@16379 slave,fail? m2 0 1 2 connected
`
	for slot, want := range map[int]string{0: "m1", 5460: "m1", 5461: "m2", 5462: "", 5463: "m2", 16383: "r3"} {
		if got := slotOwner(nodes, slot); got != want {
			t.Errorf("slot %d: %q, want %q", slot, got, want)
		}
	}
	for master, want := range map[string]bool{"m1": false, "m2": true, "": true, "r3": false} {
		if got := hasReplica(nodes, master); got != want {
			t.Errorf("a replica of %q: %v", master, got)
		}
	}
}

func TestBackoff(t *testing.T) {
	for n, want := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 5 * time.Second, 5 * time.Second} {
		if got := backoff(time.Second, 5*time.Second, n); got != want {
			t.Errorf("%d: %v, want %v", n, got, want)
		}
	}
	if got := backoff(time.Second, time.Hour, 1000); got != time.Hour {
		t.Errorf("1000: %v", got)
	}
}

func testCaller(t *testing.T, w Webhook) *caller {
	t.Helper()
	w.SecretFile = writeSecret(t, 0o600, "whsec_"+base64.StdEncoding.EncodeToString([]byte("0123456789abcdef01234567")))
	c, err := newCaller(w)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	return c
}

func TestWebhookAddresses(t *testing.T) {
	c := testCaller(t, Webhook{Hosts: []string{"hooks.example.com", "*.example.org"}})
	for raw, ok := range map[string]bool{
		"https://hooks.example.com/a?b=c":      true,
		"https://HOOKS.example.com:8443/":      true,
		"https://a.example.org/":               true,
		"https://example.org/":                 false,
		"https://evilexample.org/":             false,
		"https://hooks.example.com.evil.net/":  false,
		"http://hooks.example.com/":            false,
		"https://u:p@hooks.example.com/":       false,
		"https://hooks.example.com@evil.net/":  false,
		"file:///etc/passwd":                   false,
		"/jobs":                                false,
		"https://hooks.example.com/#f":         false,
		"https://" + strings.Repeat("a", 3000): false,
	} {
		if err := c.permits(raw); (err == nil) != ok {
			t.Errorf("%s: %v", raw, err)
		}
	}
	if (*caller)(nil).permits("https://hooks.example.com/") == nil {
		t.Error("no configuration permits a call")
	}
}

func TestWebhookNetworks(t *testing.T) {
	for ip, public := range map[string]bool{
		"93.184.216.34": true, "2606:2800:220:1::1": true,
		"127.0.0.1": false, "::1": false, "10.1.2.3": false, "172.16.0.1": false, "192.168.1.1": false,
		"169.254.169.254": false, "fe80::1": false, "fd00::1": false, "0.0.0.0": false, "100.64.0.1": false,
		"::ffff:127.0.0.1": false, "224.0.0.1": false, "255.255.255.255": false, "64:ff9b::7f00:1": false,
	} {
		if got := publicAddress(netip.MustParseAddr(ip).Unmap()); got != public {
			t.Errorf("%s: %v", ip, got)
		}
	}
	c := testCaller(t, Webhook{AllowNetworks: []string{"10.0.0.0/8"}})
	for address, ok := range map[string]bool{"10.1.2.3:443": true, "127.0.0.1:443": false, "[::ffff:10.1.2.3]:443": true, "[::1]:443": false} {
		if err := c.control("tcp", address, nil); (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// The example of the Standard Webhooks specification.
func TestWebhookSignature(t *testing.T) {
	secret, err := base64.StdEncoding.DecodeString("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	c := &caller{secrets: [][]byte{secret}}
	got := c.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", []byte(`{"test": 2432232314}`))
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestConfig(t *testing.T) {
	cases := []struct {
		name string
		set  func(*Config)
		want string
	}{
		{"defaults", func(*Config) {}, ""},
		{"off is not looked at", func(c *Config) { *c = Config{} }, ""},
		{"durability", func(c *Config) { c.Durability = "disk" }, "jobs.durability"},
		{"repeat", func(c *Config) { c.Repeat = "" }, "jobs.repeat"},
		{"lease", func(c *Config) { c.Lease = 0 }, "jobs.lease"},
		{"workers", func(c *Config) { c.Workers = -1 }, "jobs.workers"},
		{"webhook without secret", func(c *Config) { c.Webhook.Hosts = []string{"a.b"} }, "jobs.webhook.secretFile"},
		{"webhook host", func(c *Config) { c.Webhook.Hosts, c.Webhook.SecretFile = []string{"https://a"}, "x" }, "jobs.webhook.hosts"},
		{"webhook network", func(c *Config) { c.Webhook.AllowNetworks = []string{"10"} }, "jobs.webhook.allowNetworks"},
	}
	for _, tc := range cases {
		c := DefaultConfig()
		c.KeyFile = "x"
		tc.set(&c)
		var fields []string
		c.Validate(func(field, _ string, _ ...any) { fields = append(fields, field) })
		if got := strings.Join(fields, " "); got != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
}
