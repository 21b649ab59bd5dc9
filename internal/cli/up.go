package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"fournines/internal/process"
	"fournines/local"
	"fournines/spec"
	"fournines/topology"
)

// noSpecFile is the specification of a stack that was started without one.
const noSpecFile = "# fournines.yaml was not given: every field has its default.\n"

// reportLines is how much of a log a failure report shows.
const reportLines = 5

type upOptions struct {
	specFile, dataDir, user string
	detach                  bool
	timeout                 time.Duration
}

func (a *app) upCommand() *cobra.Command {
	var o upOptions
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start the whole stack on this machine",
		Long: `Start the whole stack on this machine.

Without -f it takes fournines.yaml of the current directory, else the one the
stack in --data-dir was started with, else the defaults. A stack that runs
already is left alone; one whose supervisor died is taken over.

The command stays attached and shows changes; Ctrl-C stops the stack, a second
Ctrl-C kills it. With --detach it returns when everything is ready. When
something does not get ready it says what, why, and exits with status 1; the
rest keeps running for a look, and "fournines down" stops it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.up(cmd.Context(), o) },
	}
	f := cmd.Flags()
	dataDirFlag(f, &o.dataDir)
	f.StringVarP(&o.specFile, "file", "f", "", "specification to run (default ./fournines.yaml)")
	f.StringVar(&o.user, "user", defaultUser, "account that runs the servers when root starts the stack")
	f.BoolVarP(&o.detach, "detach", "d", false, "return when the stack is ready")
	f.DurationVar(&o.timeout, "timeout", 5*time.Minute, "how long to wait until the stack is ready")
	return cmd
}

func (a *app) up(ctx context.Context, o upOptions) error {
	dir, err := local.AbsDir(o.dataDir)
	if err != nil {
		return err
	}
	data, from, err := chooseSpec(o.specFile, dir)
	if err != nil {
		return err
	}
	want, err := spec.Parse(from, data)
	if err != nil {
		return err
	}
	client := local.NewClient(dir)
	defer client.Close()

	// Signals are counted here, because the second one means something else
	// than the end of the program.
	ctx, signals, stopSignals := countSignals(ctx)
	defer stopSignals()

	st, err := client.Status(ctx)
	if errors.Is(err, local.ErrNotRunning) {
		if err = a.launch(ctx, client, dir, data, want, from, o); errors.Is(err, errStartedMeanwhile) {
			st, err = client.Status(ctx)
		} else if err == nil {
			return a.attend(ctx, client, dir, o, signals)
		}
	}
	if err != nil {
		return err
	}
	if err := sameSpec(dir, from, want); err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "The stack in %s already runs.\n", dir)
	if st.State == topology.Starting {
		if err := a.awaitReady(ctx, client, dir, o.timeout); err != nil {
			return err
		}
	}
	return a.showTable(ctx, client)
}

// attend shows the start of a stack that this command has launched, and what
// comes after it.
func (a *app) attend(ctx context.Context, client *local.Client, dir string, o upOptions, signals <-chan os.Signal) error {
	err := a.awaitReady(ctx, client, dir, o.timeout)
	if errors.Is(err, context.Canceled) {
		return a.bringDown(ctx, client, signals)
	}
	if err != nil {
		return err
	}
	err = a.showTable(ctx, client)
	if o.detach || (err != nil && !isNotReady(err)) {
		return err
	}
	fmt.Fprintln(a.stdout, "\nAttached; Ctrl-C stops the stack. Changes:")
	err = a.showChanges(ctx, client)
	if errors.Is(err, context.Canceled) {
		return a.bringDown(ctx, client, signals)
	}
	return err
}

// chooseSpec returns the specification to run and the name of its file.
func chooseSpec(file, dir string) (data []byte, from string, err error) {
	candidates := []string{file}
	if file == "" {
		candidates = []string{spec.FileName, filepath.Join(dir, local.SpecFile)}
	}
	for _, c := range candidates {
		data, err := os.ReadFile(c)
		if err == nil {
			return data, c, nil
		}
		if file != "" {
			if errors.Is(err, fs.ErrNotExist) {
				return nil, "", fmt.Errorf("%s does not exist; write one with `fournines init -o %s`", c, c)
			}
			return nil, "", fmt.Errorf("read the specification: %w", err)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, "", fmt.Errorf("read the specification: %w", err)
		}
	}
	return []byte(noSpecFile), "the defaults", nil
}

// sameSpec says how the wanted specification differs from that of the stack
// that runs in dir.
func sameSpec(dir, from string, want *spec.Spec) error {
	path := filepath.Join(dir, local.SpecFile)
	have, err := spec.Load(path)
	if err != nil {
		return err
	}
	var fields []string
	h, w := reflect.ValueOf(*have), reflect.ValueOf(*want)
	for i := range h.NumField() {
		if !reflect.DeepEqual(h.Field(i).Interface(), w.Field(i).Interface()) {
			name, _, _ := strings.Cut(h.Type().Field(i).Tag.Get("yaml"), ",")
			fields = append(fields, name)
		}
	}
	if len(fields) == 0 {
		return nil
	}
	return fmt.Errorf("the stack in %s runs with another specification: %s differs from %s in %s; to change it, run `fournines down` and then `fournines up` again",
		dir, from, path, strings.Join(fields, ", "))
}

// errStartedMeanwhile says that another `fournines up` was quicker.
var errStartedMeanwhile = errors.New("started meanwhile")

// launch checks the machine, writes the data directory and starts the
// supervisor. What it makes it takes back when the stack cannot start.
func (a *app) launch(ctx context.Context, client *local.Client, dir string, data []byte, want *spec.Spec, from string, o upOptions) error {
	owner, err := stackOwner(o.user)
	if err != nil {
		return err
	}
	fresh := !local.IsDataDir(dir)
	if err := local.PrepareDir(dir); err != nil {
		return err
	}
	turn, err := local.AwaitTurn(ctx, dir)
	if err != nil {
		return err
	}
	defer turn.Release()
	switch _, err := client.Status(ctx); {
	case err == nil:
		return errStartedMeanwhile
	case !errors.Is(err, local.ErrNotRunning):
		return err
	}
	left, err := local.LeftRunning(dir)
	if err != nil {
		return err
	}
	if left.State != topology.Stopped {
		if err := sameSpec(dir, from, want); err != nil {
			return err
		}
		fmt.Fprintf(a.stdout, "The supervisor of %s has died; taking over what still runs.\n", dir)
		return startSupervisor(ctx, dir, o.user)
	}
	plan, err := a.planFor(ctx, want, dir, owner, slog.New(slog.DiscardHandler))
	if err == nil {
		err = local.Preflight(ctx, plan, dir, owner)
	}
	if err != nil {
		return errors.Join(err, takeBack(ctx, plan, dir, fresh))
	}
	if err := process.WriteFile(filepath.Join(dir, local.SpecFile), data, 0o600, process.Owner{}); err != nil {
		return err
	}
	return startSupervisor(ctx, dir, o.user)
}

// takeBack removes what a start has made that found it cannot go on: the
// network of the zones, and the data directory if it was not there before.
func takeBack(ctx context.Context, plan *local.Plan, dir string, fresh bool) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	if plan != nil && plan.Teardown != nil {
		errs = append(errs, plan.Teardown(ctx))
	}
	if fresh {
		errs = append(errs, local.DeleteDir(dir))
	}
	return errors.Join(errs...)
}

// awaitReady shows the start until every component was ready once.
func (a *app) awaitReady(ctx context.Context, client *local.Client, dir string, timeout time.Duration) error {
	list := newChecklist(a.stdout)
	defer list.close()
	waitCtx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var failed *topology.Component
	err := client.Events(waitCtx, func(e local.Event) error {
		list.show(e)
		switch {
		case e.StartSeconds > 0 && e.Component == nil: // comes after the last component's event
			return errDone
		case e.Component != nil && e.Component.State == topology.Failed:
			failed = e.Component
			return errDone
		}
		return nil
	})
	list.close()
	switch {
	case failed != nil:
		return errors.New(failureReport(dir, *failed))
	case errors.Is(err, errDone):
		return nil
	case ctx.Err() != nil:
		return context.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		if c := list.firstUnready(); c != nil {
			return fmt.Errorf("not everything is ready after %v: %s", timeout, failureReport(dir, *c))
		}
		return fmt.Errorf("not everything is ready after %v; see `fournines status`", timeout)
	case err != nil:
		return fmt.Errorf("%w; see `fournines logs %s`, and run `fournines up` again", err, local.SupervisorLog)
	}
	return errors.New("the stack was stopped while it started")
}

// failureReport names the component, what is wrong with it, and where to look.
func failureReport(dir string, c topology.Component) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s is %s: %s\n", c.Name, c.State, dash(c.Reason))
	tail, err := local.TailLog(dir, c.Name, reportLines)
	if err == nil && len(tail) > 0 {
		fmt.Fprintf(&b, "The last lines of its log:\n")
		for line := range strings.Lines(string(tail)) {
			fmt.Fprintf(&b, "  %s\n", strings.TrimRight(line, "\n"))
		}
	}
	fmt.Fprintf(&b, "More: `fournines logs %s`. What runs keeps running; `fournines down` stops it.", c.Name)
	return b.String()
}

func (a *app) showTable(ctx context.Context, client *local.Client) error {
	st, err := client.Status(ctx)
	if err != nil {
		return err
	}
	if err := printStatus(a.stdout, st); err != nil {
		return err
	}
	return statusExit(st)
}

func isNotReady(err error) bool {
	var e *exitError
	return errors.As(err, &e) && e.code == exitNotReady
}

// showChanges prints a line for each component that changes its state or role.
func (a *app) showChanges(ctx context.Context, client *local.Client) error {
	type shown struct {
		state        topology.State
		role, reason string
	}
	last := map[string]shown{}
	synced := false
	err := client.Events(ctx, func(e local.Event) error {
		synced = synced || e.Synced
		c := e.Component
		if c == nil {
			return nil
		}
		now := shown{c.State, c.Role, c.Reason}
		if old, known := last[c.Name]; synced && (!known || old.state != now.state || old.role != now.role) {
			line := string(c.State)
			if c.Role != "" {
				line += " (" + c.Role + ")"
			}
			if c.Reason != "" {
				line += ": " + c.Reason
			}
			fmt.Fprintf(a.stdout, "%s  %s  %s\n", time.Now().Format(time.TimeOnly), c.Name, line)
		}
		last[c.Name] = now
		return nil
	})
	switch {
	case ctx.Err() != nil:
		return context.Canceled
	case err != nil:
		return fmt.Errorf("%w; the components keep running, `fournines up` takes them over", err)
	}
	fmt.Fprintln(a.stdout, "The stack has been stopped.")
	return nil
}

// bringDown stops the stack after Ctrl-C; another Ctrl-C kills it.
func (a *app) bringDown(ctx context.Context, client *local.Client, signals <-chan os.Signal) error {
	fmt.Fprintln(a.stdout, "\nStopping in order; Ctrl-C again kills at once.")
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	began := time.Now()
	result := make(chan error, 1)
	go func() { result <- client.Down(ctx, false) }()
	for {
		select {
		case err := <-result:
			if err != nil && !errors.Is(err, local.ErrNotRunning) {
				return err
			}
			fmt.Fprintf(a.stdout, "Stopped in %.1f s.\n", time.Since(began).Seconds())
			return nil
		case <-signals:
			fmt.Fprintln(a.stdout, "Killing what is left.")
			go func() { _ = client.Down(ctx, true) }() // the first request answers
			signals = nil
		}
	}
}

// countSignals returns a context that ends with the first interrupt, and a
// channel that gets the later ones.
func countSignals(parent context.Context) (context.Context, <-chan os.Signal, func()) {
	ctx, cancel := context.WithCancel(parent)
	raw := make(chan os.Signal, 4)
	later := make(chan os.Signal, 4)
	signal.Notify(raw, os.Interrupt, syscall.SIGTERM)
	end := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for n := 0; ; n++ {
			select {
			case s := <-raw:
				cancel()
				if n > 0 {
					select {
					case later <- s:
					default: // nobody asks any more
					}
				}
			case <-end:
				return
			}
		}
	}()
	return ctx, later, func() {
		signal.Stop(raw)
		close(end)
		<-ended
		cancel()
	}
}
