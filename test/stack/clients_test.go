package stack

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestClients runs clients that nobody here wrote, each in a script that uses
// it as an application would.
func TestClients(t *testing.T) {
	python, err := filepath.Abs("../../.tools/venv/bin/python")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(python); err != nil {
		t.Fatalf("the Python clients are not installed: run `make setup-test` (%v)", err)
	}
	for _, script := range []string{"sqlalchemy_client", "redis_client", "celery_client", "milvus_client", "dify_client_sdk"} {
		t.Run(script, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), python, script+".py")
			cmd.Dir = "../clients"
			cmd.Env = append(os.Environ(), "FOURNINES_CREDENTIALS="+theStack.status(t).CredentialsFile, "PYTHONDONTWRITEBYTECODE=1")
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.HasSuffix(string(out), "ok\n") {
				t.Fatalf("%s: %v\n%s", script, err, out)
			}
		})
	}
	t.Run("psql", func(t *testing.T) {
		cmd := exec.CommandContext(t.Context(), "psql", theStack.credentials(t).Postgres.URL, "--no-psqlrc", "-v", "ON_ERROR_STOP=1")
		cmd.Stdin = strings.NewReader(`\conninfo
begin; create table psql_client(a int); insert into psql_client select generate_series(1, 1000);
declare c cursor for select a from psql_client order by a; fetch 3 from c; rollback;
\copy (select 42) to stdout
\d conversations
`)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "42") || !strings.Contains(string(out), "character varying") {
			t.Fatalf("psql: %v\n%s", err, out)
		}
	})
}
