package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"

	"fournines/internal/adminhttp"
	"fournines/internal/handover"
	"fournines/internal/lifecycle"
	"fournines/internal/strictyaml"
)

// The names of a daemon's listening sockets.
const (
	clientSocket = "client"
	adminSocket  = "admin"
)

// daemon is one of our long-running processes, ready to be run.
type daemon struct {
	// name is the component's in logs.
	name string
	log  *slog.Logger
	reg  *prometheus.Registry
	// listen is the host:port for clients, handed to run as an open listener.
	listen string
	run    func(ctx context.Context, ln net.Listener) error
	// adminListen is the host:port of /metrics, /livez and /readyz; empty for none.
	adminListen string
	ready       func() error
	// admin adds paths to the admin listener, for callers with adminToken; stop
	// ends the process as SIGTERM does. Nil adds nothing.
	admin      func(stop func()) map[string]http.Handler
	adminToken func() string
	// handover is the path of the Unix socket through which a successor gets
	// the listeners; empty hands nothing over.
	handover string
	// handOver makes run close its listener and return when the work it has is
	// done; needed with handover.
	handOver func()
	// reload reads the configuration again at SIGHUP; nil means that SIGHUP ends
	// the process as usual.
	reload func() error
}

// serve opens the listeners of d and runs it until ctx ends or a successor has
// taken over and d has finished its work.
func serve(ctx context.Context, d daemon) error {
	sockets := []handover.Socket{{Name: clientSocket, Address: d.listen}}
	if d.adminListen != "" {
		sockets = append(sockets, handover.Socket{Name: adminSocket, Address: d.adminListen})
	}
	set, err := handover.Open(ctx, handover.Options{Path: d.handover, Logger: d.log}, sockets...)
	if err != nil {
		return err
	}
	defer set.Close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var group lifecycle.Group
	// The admin face is added first, so that it stays up during the drain and
	// tells the load balancer about it. After a hand-over it is the successor's.
	if ln := set.Listener(adminSocket); ln != nil {
		admin := &adminhttp.Server{Gatherer: d.reg, Ready: d.ready, Token: d.adminToken}
		if d.admin != nil {
			admin.Handlers = d.admin(stop)
		}
		group.Add("admin", func(ctx context.Context) error {
			own, cancel := context.WithCancel(ctx)
			defer cancel()
			go func() {
				select {
				case <-set.TakenOver():
					cancel()
				case <-own.Done():
				}
			}()
			err := admin.Run(own, ln)
			if err == nil {
				<-ctx.Done() // an actor that returns ends the others
			}
			return err
		})
	}
	if d.reload != nil {
		group.Add("reload", onHangup(d.log, d.reload))
	}
	group.Add("handover", func(ctx context.Context) error {
		err := set.Run(ctx, d.ready)
		if !errors.Is(err, handover.ErrTakenOver) {
			return err
		}
		d.handOver() // makes d.run return when the work is done
		<-ctx.Done()
		return nil
	})
	group.Add(d.name, func(ctx context.Context) error { return d.run(ctx, set.Listener(clientSocket)) })
	d.log.Info("started", "listen", set.Listener(clientSocket).Addr().String(), "pid", os.Getpid())
	if err := group.Run(ctx); err != nil {
		return err
	}
	d.log.Info("stopped", "pid", os.Getpid())
	return nil
}

// addAdmin opens the admin listener and adds its server; an empty address is none.
func addAdmin(ctx context.Context, group *lifecycle.Group, address string, server *adminhttp.Server) error {
	if address == "" {
		return nil
	}
	var listen net.ListenConfig
	ln, err := listen.Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen on the admin address: %w", err)
	}
	// Run closes the listener; it always runs, if only to be stopped at once.
	group.Add("admin", func(ctx context.Context) error { return server.Run(ctx, ln) })
	return nil
}

// configCommand makes cmd one that takes everything from the file that --config
// names, and hands the file's path to run.
func configCommand(cmd *cobra.Command, run func(ctx context.Context, path string) error) *cobra.Command {
	var config string
	cmd.Use += " --config FILE"
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), config) }
	cmd.Flags().StringVar(&config, "config", "", "configuration file")
	_ = cmd.MarkFlagRequired("config")
	return cmd
}

// processRegistry is a registry with the metrics of the process itself.
func processRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

// onHangup returns an actor that calls reload at each SIGHUP until its context
// ends. A reload that fails leaves everything as it was. The signal is taken
// from now on, not only from when the actor runs: it would end a process that is
// already ready for everything else.
func onHangup(logger *slog.Logger, reload func() error) func(context.Context) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	return func(ctx context.Context) error {
		defer signal.Stop(hangup)
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-hangup:
				if err := reload(); err != nil {
					logger.Error("configuration not reloaded, the old one stays", "err", err)
				} else {
					logger.Info("configuration reloaded")
				}
			}
		}
	}
}

// loadConfig reads the file at path into cfg, which holds the defaults, and
// checks it. The error is for a wrong call: exit code 2.
func loadConfig(path string, cfg strictyaml.Validator) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return &exitError{code: 2, err: fmt.Errorf("read configuration: %w", err)}
	}
	if err := strictyaml.UnmarshalValid(path, data, cfg); err != nil {
		return &exitError{code: 2, err: err}
	}
	return nil
}
