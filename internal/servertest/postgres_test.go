package servertest

import (
	"errors"
	"testing"
	"time"

	"fournines/internal/eventually"
)

func TestPostgresClusterLifecycle(t *testing.T) {
	primary := NewPostgres(t, PostgresOptions{})
	standby := NewStandby(t, primary)
	primary.Exec("CREATE TABLE t (n int)", "INSERT INTO t VALUES (7)")
	eventually.Nil(t, time.Minute, func() error {
		var n int
		if err := standby.QueryRow("SELECT n FROM t").Scan(&n); err != nil {
			return err
		}
		if n != 7 {
			return errors.New("wrong row")
		}
		return nil
	})
	primary.Kill()
	standby.Promote()
	standby.Exec("INSERT INTO t VALUES (8)")
	primary.Rejoin(standby)
	var recovery bool
	if err := primary.QueryRow("SELECT pg_is_in_recovery()").Scan(&recovery); err != nil || !recovery {
		t.Fatalf("rejoined server: recovery=%v err=%v", recovery, err)
	}
	standby.Restart()
}
