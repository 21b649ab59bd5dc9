package gateway

import (
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// page is the operator's page, without fenced code.
func page(tb testing.TB) string {
	tb.Helper()
	text, err := os.ReadFile("../docs/gateway.md")
	if err != nil {
		tb.Fatal(err)
	}
	return regexp.MustCompile("(?s)```.*?```").ReplaceAllString(string(text), "")
}

// TestPageHasAllSettings holds the table of docs/gateway.md against Config.
func TestPageHasAllSettings(t *testing.T) {
	_, table, ok := strings.Cut(page(t), "## All settings")
	if !ok {
		t.Fatal(`docs/gateway.md has no section "All settings"`)
	}
	defaults := map[string]string{} // as the page writes them, by setting
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) < 5 {
			continue
		}
		for name := range strings.SplitSeq(cells[1], ",") {
			defaults[strings.Trim(strings.TrimSpace(name), "`")] = strings.Trim(strings.TrimSpace(cells[2]), "`")
		}
	}
	known := map[string]bool{"setting": true}
	for name, want := range settingsOf(reflect.ValueOf(DefaultConfig()), "") {
		known[name] = true
		got, ok := defaults[name]
		switch {
		case !ok:
			t.Errorf("%s is not in the table of all settings", name)
		case !strings.Contains(name, "[]") && got != want:
			t.Errorf("%s: the page says that the default is %q, it is %q", name, got, want)
		}
	}
	for name := range defaults {
		if !known[name] && strings.Trim(name, "-: ") != "" {
			t.Errorf("there is no setting %s", name)
		}
	}
}

// settingsOf lists the settings below v with their defaults as the page writes
// them. Elements of a list have its name and "[]".
func settingsOf(v reflect.Value, prefix string) map[string]string {
	out := map[string]string{}
	for i := range v.NumField() {
		f, field := v.Type().Field(i), v.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		at := strings.TrimPrefix(prefix+"."+name, ".")
		if options == "inline" {
			at = prefix
		}
		switch x := field.Interface().(type) {
		case time.Duration:
			out[at] = short(x)
			continue
		case fmt.Stringer:
			out[at] = x.String()
			continue
		}
		below := map[string]string{}
		switch {
		case field.Kind() == reflect.Struct:
			below = settingsOf(field, at)
		case field.Kind() == reflect.Slice && field.Type().Elem().Kind() == reflect.Struct:
			below = settingsOf(reflect.New(field.Type().Elem()).Elem(), at+"[]")
		case field.Kind() == reflect.Slice:
			out[at] = ""
		default:
			out[at] = fmt.Sprint(field.Interface())
		}
		for k, s := range below {
			out[k] = s
		}
	}
	return out
}

// short writes d without units that are 0.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// names is a registry that notes what is registered.
type names struct {
	prometheus.Registerer
	list []string
}

var fqName = regexp.MustCompile(`fqName: "([^"]+)"`)

// Register implements prometheus.Registerer.
func (n *names) Register(c prometheus.Collector) error {
	ch := make(chan *prometheus.Desc, 100)
	go func() {
		c.Describe(ch)
		close(ch)
	}()
	for d := range ch {
		n.list = append(n.list, fqName.FindStringSubmatch(d.String())[1])
	}
	return n.Registerer.Register(c)
}

// TestPageHasAllMetrics holds docs/gateway.md against what a gateway registers.
func TestPageHasAllMetrics(t *testing.T) {
	cfg := DefaultConfig()
	u, err := ParseUpstream("127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Upstreams = []Upstream{u}
	cfg.Redis.Nodes = []string{"127.0.0.1:1"} // nobody is asked: it does not run
	cfg.Jobs.KeyFile = jobKeyFile(t)
	n := &names{Registerer: prometheus.NewRegistry()}
	if _, err := New(cfg, slog.New(slog.DiscardHandler), n); err != nil {
		t.Fatal(err)
	}
	text := page(t)
	for _, full := range n.list {
		name := strings.TrimPrefix(full, "fournines_gateway_")
		if !regexp.MustCompile("(`|fournines_gateway_)" + name + "[`{ ]").MatchString(text) {
			t.Errorf("docs/gateway.md does not say what %s is", full)
		}
	}
}
