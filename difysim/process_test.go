package difysim

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fournines/internal/logging"
)

// processVariable makes the test binary be a simulator process, started as
// Dify's image is: by environment variables alone.
const processVariable = "DIFYSIM_TEST_PROCESS"

func processMain() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := processRun(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func processRun(ctx context.Context) error {
	role, migrate, err := Entrypoint(os.Getenv)
	if err != nil {
		return err
	}
	cfg, err := LoadConfig("", os.Getenv)
	if err != nil {
		return err
	}
	log, err := logging.New(os.Stderr, "info")
	if err != nil {
		return err
	}
	if migrate || role == RoleMigrate {
		if _, err := Migrate(ctx, cfg, log, migrate); err != nil || role == RoleMigrate {
			return err
		}
	}
	ln, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return err
	}
	if role == RoleWorker {
		// Slow enough to be killed in the middle.
		if v := os.Getenv("DIFYSIM_TEST_EMBEDDING_DELAY"); v != "" {
			cfg.Indexing.SegmentLength = 20
			if cfg.Indexing.EmbeddingDelay, err = time.ParseDuration(v); err != nil {
				return err
			}
		}
		w, err := NewWorker(cfg, log, prometheus.NewRegistry())
		if err != nil {
			return err
		}
		return w.Run(ctx, ln)
	}
	api, err := NewAPI(cfg, log, prometheus.NewRegistry())
	if err != nil {
		return err
	}
	return api.Run(ctx, ln)
}

// child is a simulator process of its own.
type child struct {
	*instance
	cmd *exec.Cmd
}

// startProcess starts a process whose settings come from the environment.
func startProcess(t *testing.T, cfg Config, env ...string) *child {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	logFile, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		logFile.Close()
		if t.Failed() {
			text, _ := os.ReadFile(logFile.Name())
			t.Logf("process log:\n%s", text)
		}
	})
	cmd := exec.Command(os.Args[0])
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.Env = append(os.Environ(), processVariable+"=1",
		"DIFY_BIND_ADDRESS=127.0.0.1", "DIFY_PORT="+port,
		"DB_HOST="+cfg.Database.Host, "DB_PORT="+strconv.Itoa(cfg.Database.Port), "DB_USERNAME="+cfg.Database.User,
		"DB_PASSWORD="+cfg.Database.password, "DB_DATABASE="+cfg.Database.Name,
		"REDIS_HOST="+cfg.Redis.Host, "REDIS_PORT="+strconv.Itoa(cfg.Redis.Port), "REDIS_DB=0",
		fmt.Sprintf("CELERY_BROKER_URL=redis://%s:%d/1", cfg.Redis.Host, cfg.Redis.Port),
		"VECTOR_STORE=milvus", "MILVUS_URI=http://"+net.JoinHostPort(cfg.Vector.Host, strconv.Itoa(cfg.Vector.Port)),
		"MILVUS_USER="+cfg.Vector.User, "MILVUS_PASSWORD="+cfg.Vector.password,
		"STORAGE_TYPE=local", "STORAGE_LOCAL_PATH="+cfg.Storage.Path, "SECRET_KEY=shared", "DIFYSIM_SEED_FILE="+cfg.SeedFile,
	)
	cmd.Env = append(cmd.Env, env...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{instance: &instance{t: t, base: "http://" + address}, cmd: cmd}
	t.Cleanup(func() { c.kill() })
	return c
}

// kill ends the process as a power cut does; it may be called twice.
func (c *child) kill() {
	_ = c.cmd.Process.Kill() // it may have ended
	_ = c.cmd.Wait()
}
