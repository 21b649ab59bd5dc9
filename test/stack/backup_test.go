package stack

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"fournines/internal/eventually"
)

// backups is what `fournines backup list` answers.
type backups struct {
	Backups []struct{ Label string }
}

// backup runs a subcommand of backup against the stack and decodes its answer.
func (s *stack) backup(t *testing.T, answer any, args ...string) {
	t.Helper()
	args = append(append([]string{"backup"}, args...), "-o", "json", "--data-dir", s.data)
	cmd := exec.CommandContext(t.Context(), s.bin, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, stderr.String())
	}
	if err := json.Unmarshal(out, answer); err != nil {
		t.Fatalf("%v: %v in %s", args, err, out)
	}
}

// TestDatabaseGoesBack takes the first backup of the stack, which the scheduler
// has made by itself, writes, and puts the whole database back in place.
func TestDatabaseGoesBack(t *testing.T) {
	eventually.Nil(t, 2*time.Minute, func() error {
		if st := theStack.status(t); st.Backup == nil || st.Backup.AgeSeconds == nil || st.Backup.Error != "" {
			return fmt.Errorf("no backup yet: %+v", st.Backup)
		}
		return nil
	})
	var before backups
	theStack.backup(t, &before, "list")

	ctx := t.Context()
	conn, err := pgx.Connect(ctx, theStack.credentials(t).Postgres.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "CREATE TABLE history (note text)"); err != nil {
		t.Fatal(err)
	}
	var last uint64
	for _, note := range []string{"first", "last"} {
		if err := conn.QueryRow(ctx, "INSERT INTO history VALUES ($1) RETURNING txid_current()", note).Scan(&last); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := conn.Exec(ctx, "INSERT INTO history VALUES ('by mistake')"); err != nil {
		t.Fatal(err)
	}
	target := []string{"restore", "--in-place", "--to-xid", strconv.FormatUint(last, 10)}
	out, err := theStack.run(time.Minute, append([]string{"backup"}, target...)...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(out, "--yes") {
		t.Fatalf("without --yes: %v\n%s", err, out)
	}
	var done struct {
		Outage time.Duration
		Aside  []string
	}
	theStack.backup(t, &done, append(target, "--yes")...)
	t.Logf("the database was away for %v", done.Outage)
	if len(done.Aside) != 3 {
		t.Errorf("set aside: %v, want the directories of three servers", done.Aside)
	}
	for _, dir := range done.Aside {
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
	}

	eventually.Nil(t, time.Minute, func() error {
		conn, err := pgx.Connect(ctx, theStack.credentials(t).Postgres.URL)
		if err != nil {
			return err
		}
		defer conn.Close(ctx)
		rows, err := conn.Query(ctx, "SELECT note FROM history ORDER BY 1")
		if err != nil {
			return err
		}
		notes, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		if !slices.Equal(notes, []string{"first", "last"}) {
			t.Errorf("the table has %q", notes)
		}
		_, err = conn.Exec(ctx, "DROP TABLE history")
		return err
	})
	eventually.Nil(t, time.Minute, func() error {
		if st := theStack.status(t); st.State != "ready" {
			return fmt.Errorf("the stack is %s", st.State)
		}
		return nil
	})
	var after backups
	theStack.backup(t, &after, "list")
	if len(after.Backups) <= len(before.Backups) {
		t.Errorf("no backup of the restored database: %+v", after)
	}
}
