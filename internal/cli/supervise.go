package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"fournines/internal/logging"
	"fournines/internal/process"
	"fournines/local"
	"fournines/spec"
)

// defaultUser is the account that runs the servers of a stack that root starts.
const defaultUser = "fournines"

// notifyOK is what a supervisor tells `fournines up` once it serves.
const notifyOK = "ok"

func (a *app) superviseCommand() *cobra.Command {
	var (
		dataDir, user string
		notifyFD      int
	)
	cmd := &cobra.Command{
		Use:    "supervise --data-dir DIR",
		Short:  "Run the supervisor of a stack in the foreground",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var notify *os.File
			if notifyFD > 0 {
				syscall.CloseOnExec(notifyFD)
				notify = os.NewFile(uintptr(notifyFD), "notify")
			}
			tell := func(line string) {
				if notify != nil {
					_, _ = io.WriteString(notify, strings.ReplaceAll(line, "\n", "\v")+"\n")
					_ = notify.Close()
					notify = nil
				}
			}
			err := a.supervise(cmd.Context(), dataDir, user, func() { tell(notifyOK) })
			if err != nil {
				tell(err.Error())
			}
			return err
		},
	}
	f := cmd.Flags()
	dataDirFlag(f, &dataDir)
	f.StringVar(&user, "user", defaultUser, "account that runs the servers when the supervisor is root")
	f.IntVar(&notifyFD, "notify-fd", 0, "descriptor that is told when the supervisor serves")
	return cmd
}

// supervise runs the stack of a data directory until it has been stopped.
func (a *app) supervise(ctx context.Context, dataDir, user string, serving func()) error {
	dir, err := local.AbsDir(dataDir)
	if err != nil {
		return err
	}
	if err := local.PrepareDir(dir); err != nil {
		return err
	}
	lock, err := local.Acquire(dir)
	if err != nil {
		return err
	}
	defer lock.Release()
	logFile, err := os.OpenFile(local.LogPath(dir, local.SupervisorLog), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return fmt.Errorf("supervisor log: %w", err)
	}
	defer logFile.Close()
	log, err := logging.New(logFile, "info")
	if err != nil {
		return err
	}
	owner, err := stackOwner(user)
	if err != nil {
		return err
	}
	s, err := spec.Load(filepath.Join(dir, local.SpecFile))
	if err != nil {
		return err
	}
	plan, err := a.planFor(ctx, s, dir, owner, log)
	if err != nil {
		return err
	}
	opts := supervisorOptions(s)
	opts.Plan, opts.Dir, opts.Owner, opts.Logger, opts.Serving = plan, dir, owner, log, serving
	ln, err := local.ListenControl(lock, dir)
	if err != nil {
		return err
	}
	if opts.StatusListener, err = local.ListenStatus(lock, dir, owner); err != nil {
		_ = ln.Close()
		return err
	}
	sup, err := local.New(opts)
	if err != nil {
		return err
	}
	if err := process.BecomeSubreaper(); err != nil {
		log.Warn("orphans are left to process 1", "err", err)
	}

	// The first signal stops the stack in order, the second at once.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	ended := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for _, act := range []func(){sup.Down, sup.Hurry} {
			select {
			case <-signals:
				act()
			case <-ended:
				return
			}
		}
	}()
	err = sup.Run(ctx, lock, ln)
	close(ended)
	<-watched
	if err != nil {
		log.Error("supervisor ended", "err", err)
	}
	return err
}

// planFor makes the plan of the stack in dir. With an error it may return a
// plan that is good for its Teardown alone.
func (a *app) planFor(ctx context.Context, s *spec.Spec, dir string, owner process.Owner, log *slog.Logger) (*local.Plan, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the own executable: %w", err)
	}
	plan, err := a.plan(ctx, local.PlanConfig{Spec: s, Dir: dir, Owner: owner, Executable: exe, Logger: log})
	if err != nil {
		return plan, fmt.Errorf("plan the stack: %w", err)
	}
	return plan, nil
}

// supervisorOptions maps what the specification says about supervision.
func supervisorOptions(s *spec.Spec) local.Options {
	o := local.Options{
		MinBackoff:  s.Local.RestartBackoff.Min.Std(),
		MaxBackoff:  s.Local.RestartBackoff.Max.Std(),
		LogMaxBytes: int64(s.Local.Logs.MaxSize),
		LogKeep:     s.Local.Logs.Keep,
	}
	if o.LogKeep == 0 {
		o.LogKeep = -1
	}
	return o
}

// stackOwner is the account of the servers: the caller itself, unless it is root.
func stackOwner(user string) (process.Owner, error) {
	if os.Geteuid() != 0 {
		return process.Owner{}, nil
	}
	return process.LookupOwner(user)
}

// startSupervisor starts `fournines supervise` in a session of its own, so
// that it outlives the terminal, and returns when it serves.
func startSupervisor(ctx context.Context, dir, user string) error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the own executable: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start the supervisor: %w", err)
	}
	defer r.Close()
	logFile, err := os.OpenFile(local.LogPath(dir, local.SupervisorLog), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		_ = w.Close()
		return fmt.Errorf("supervisor log: %w", err)
	}
	defer logFile.Close()
	cmd := exec.Command(exe, "supervise", "--data-dir", dir, "--user", user, "--notify-fd", "3")
	cmd.Dir = "/"
	cmd.Env = os.Environ()
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return fmt.Errorf("start the supervisor: %w", err)
	}
	// It is the caller's child only until the caller ends; its end is seen on
	// the control socket, but it must not stay a zombie.
	go func() { _ = cmd.Wait() }()

	stop := context.AfterFunc(ctx, func() { _ = r.Close() })
	defer stop()
	b, err := io.ReadAll(r)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	answer := strings.ReplaceAll(strings.TrimRight(string(b), "\n"), "\v", "\n")
	switch {
	case answer == notifyOK:
		return nil
	case answer != "":
		return fmt.Errorf("%s", answer)
	case err != nil:
		return fmt.Errorf("start the supervisor: %w", err)
	}
	return fmt.Errorf("the supervisor died while it started; see %s", local.LogPath(dir, local.SupervisorLog))
}
