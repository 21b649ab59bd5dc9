package kubernetes

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.yaml.in/yaml/v3"

	"fournines/internal/servertest"
	"fournines/kubernetes/operator"
)

// TestRules runs the alerts over made-up series, as Prometheus would.
func TestRules(t *testing.T) {
	servertest.Need(t, "promtool")
	var file operator.PrometheusRuleSpec
	for _, o := range render(t, example(t, "")).Objects() {
		if r, ok := o.(*operator.PrometheusRule); ok {
			file = r.Spec
		}
	}
	text, err := yaml.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	test, err := os.ReadFile("testdata/rules.test.yml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, content := range map[string][]byte{"rules.yml": text, "rules.test.yml": test} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.CommandContext(t.Context(), "promtool", "test", "rules", filepath.Join(dir, "rules.test.yml")).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
