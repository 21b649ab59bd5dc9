package local

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"fournines/difysim"
	"fournines/gateway"
	"fournines/internal/process"
	"fournines/spec"
)

// Names of what the simulator is seeded with.
const (
	seedApp      = "demo-chat"
	seedWorkflow = "demo-workflow"
)

// instance is one process of Dify: an api instance or a worker.
type instance struct {
	name, kind, zone string
	host             string
	port             int
}

func (i instance) address() string { return net.JoinHostPort(i.host, strconv.Itoa(i.port)) }

// apis lists the api instances that the stack itself runs.
func (p *planner) apis() ([]instance, error) {
	var all []instance
	if p.Spec.Dify.Source == spec.SourceExternal {
		return nil, nil
	}
	for _, zone := range p.Spec.FullZones() {
		for i := range p.Spec.Dify.APIReplicasPerZone {
			host, err := p.ip(zone, zoneAPI+i)
			if err != nil {
				return nil, err
			}
			all = append(all, instance{fmt.Sprintf("dify-api-%s-%d", zone, i+1), "dify-api", zone, host, difyPort})
		}
	}
	return all, nil
}

// workers lists the workers, spread over the zones in turn.
func (p *planner) workers() ([]instance, error) {
	var all []instance
	if p.Spec.Dify.Source == spec.SourceExternal {
		return nil, nil
	}
	zones := p.Spec.FullZones()
	for i := range p.Spec.Dify.Workers {
		zone := zones[i%len(zones)]
		host, err := p.ip(zone, zoneWorker+i)
		if err != nil {
			return nil, err
		}
		all = append(all, instance{fmt.Sprintf("dify-worker-%s-%d", zone, i/len(zones)+1), "dify-worker", zone, host, workerPort})
	}
	return all, nil
}

// difyInstances are what the gateways balance over.
func (p *planner) difyInstances() ([]gateway.Upstream, error) {
	var upstreams []gateway.Upstream
	external := p.Spec.Dify.External
	if p.Spec.Dify.Source != spec.SourceExternal {
		external = nil
	}
	for i, e := range external {
		u, err := gateway.ParseUpstream(e.URL + "@" + e.Zone)
		if err != nil {
			return nil, fmt.Errorf("dify.external[%d].url: %w", i, err)
		}
		u.Name = fmt.Sprintf("external-%s-%d", e.Zone, i+1)
		upstreams = append(upstreams, u)
	}
	apis, err := p.apis()
	if err != nil {
		return nil, err
	}
	for _, a := range apis {
		u, err := gateway.ParseUpstream("http://" + a.address() + "@" + a.zone)
		if err != nil {
			return nil, err
		}
		u.Name = a.name
		upstreams = append(upstreams, u)
	}
	return upstreams, nil
}

func (p *planner) addDify() error {
	switch p.Spec.Dify.Source {
	case spec.SourceSimulator:
		return p.addSimulator()
	case spec.SourceCommand:
		return p.addCommand()
	default:
		return nil // external instances are somebody else's processes
	}
}

// balancerHost is the one host that Dify connects to for everything: the load
// balancer, which prefers the proxies in the caller's zone.
func (p *planner) balancerHost() (string, error) { return p.ip("", hostBalancer) }

// dataReady names what Dify needs before it can work.
func (p *planner) dataReady() []string {
	return append(p.names("pgproxy", "redisproxy", "milvus-account"), "loadbalancer")
}

func (p *planner) addSimulator() error {
	host, err := p.balancerHost()
	if err != nil {
		return err
	}
	seed, err := p.writeSeed()
	if err != nil {
		return err
	}
	base := difysim.DefaultConfig()
	base.Version = p.Spec.Dify.Version
	base.SecretKeyFile = p.secrets.Path("dify-secret-key")
	base.SeedFile = seed
	base.Database.Host, base.Database.Port = host, postgresPort
	base.Database.PasswordFile = p.secrets.Path("postgres-dify")
	base.Redis.Host, base.Redis.Port = host, redisPort
	base.Redis.Username, base.Redis.PasswordFile = "dify", p.secrets.Path("redis-dify")
	base.Broker = base.Redis
	base.Broker.DB = 1
	base.Vector.Host, base.Vector.Port = host, milvusPort
	base.Vector.User, base.Vector.PasswordFile = "root", p.secrets.Path("milvus-root")
	base.Vector.Dimension = p.Spec.Vectors.Dimension
	base.Storage.Path = p.storageDir()
	sim := p.Spec.Dify.Simulator
	base.CPU.Cost, base.CPU.Mode = sim.CPUCost.Std(), string(sim.CPUMode)
	base.Answer.Tokens, base.Answer.TokensPerSecond = sim.AnswerTokens, float64(sim.TokensPerSecond)

	migrate := base
	migrate.Instance = "dify-migrate"
	task := p.own(process.Unit{Name: "dify-migrate", Kind: "dify-migrate"}, []string{"difysim", "migrate"}, migrate)
	if err := p.addTask(task, p.dataReady()); err != nil {
		return err
	}
	apis, err := p.apis()
	if err != nil {
		return err
	}
	workers, err := p.workers()
	if err != nil {
		return err
	}
	for _, i := range slices.Concat(apis, workers) {
		cfg := base
		cfg.Listen, cfg.Instance = i.address(), i.name
		mode := "api"
		if i.kind == "dify-worker" {
			mode = "worker"
		}
		u := p.own(process.Unit{
			Name: i.name, Kind: i.kind, Zone: i.zone, Address: i.address(), After: []string{"dify-migrate"},
			Ready: func(ctx context.Context) error { return getOK(ctx, "http://"+i.address()+"/difysim/ready") },
		}, []string{"difysim", mode}, cfg)
		prepare := u.Prepare
		u.Prepare = func(ctx context.Context) error {
			return errors.Join(process.MkdirAll(p.storageDir(), 0o700, p.Owner), prepare(ctx))
		}
		u.Process.StopTimeout = stopGrace(cfg.Server.GracefulTimeout)
		p.scrape(i.kind, i.name, i.zone, i.address(), "/metrics")
		if err := p.add(u, nil); err != nil {
			return err
		}
	}
	return nil
}

// storageDir is the folder for uploads that all instances share.
func (p *planner) storageDir() string {
	if dir := p.Spec.Dify.Command.StorageDir; dir != "" {
		return dir
	}
	return filepath.Join(p.Dir, "storage")
}

// demoKeys returns the keys of the demo application, workflow and knowledge base.
func (p *planner) demoKeys() (app, workflow, dataset string, err error) {
	keys := make([]string, 3)
	for i, s := range []struct{ prefix, name string }{
		{"app-", "dify-app-key"}, {"app-", "dify-workflow-key"}, {"dataset-", "dify-dataset-key"},
	} {
		secret, err := p.secrets.Read(s.name)
		if err != nil {
			return "", "", "", err
		}
		keys[i] = s.prefix + secret
	}
	return keys[0], keys[1], keys[2], nil
}

// writeSeed writes what the simulator's migration puts into an empty database.
func (p *planner) writeSeed() (string, error) {
	app, workflow, dataset, err := p.demoKeys()
	if err != nil {
		return "", err
	}
	text, err := yaml.Marshal(difysim.Seed{
		Tenant: "demo", DatasetKey: dataset,
		Apps: []difysim.SeedApp{
			{Name: seedApp, Mode: difysim.ModeChat, Key: app},
			{Name: seedWorkflow, Mode: difysim.ModeWorkflow, Key: workflow},
		},
	})
	if err != nil {
		return "", fmt.Errorf("render the seed: %w", err)
	}
	path := filepath.Join(p.Dir, secretDir, "dify-seed.yaml")
	return path, process.WriteFile(path, text, 0o600, p.Owner)
}

// addTask turns the process of u into a task that runs it once to its end.
func (p *planner) addTask(u process.Unit, after []string) error {
	proc, prepare, log := *u.Process, u.Prepare, LogPath(p.Dir, u.Name)
	u.Process, u.Prepare, u.After = nil, nil, after
	u.Task = func(ctx context.Context) error {
		if err := prepare(ctx); err != nil {
			return err
		}
		return p.runToEnd(ctx, proc, u.Name, log)
	}
	return p.add(u, nil)
}

// runToEnd runs a process once and returns how it ended. When ctx ends first,
// the process is stopped.
func (p *planner) runToEnd(ctx context.Context, s process.Spec, name, log string) error {
	child, err := process.Start(s, process.StartOptions{Owner: p.Owner, LogFile: log, Mark: Mark(p.Dir, name)})
	if err != nil {
		return err
	}
	defer child.Release()
	select {
	case <-child.Done():
	case <-ctx.Done():
		return errors.Join(context.Cause(ctx), child.KillTree(5*time.Second))
	}
	if !child.Succeeded() {
		return fmt.Errorf("%s; see %s", child.Exit(), log)
	}
	return nil
}

// addCommand runs a Dify checkout: the commands of the spec, once per instance.
func (p *planner) addCommand() error {
	c := p.Spec.Dify.Command
	after := p.dataReady()
	if len(c.Migrate) > 0 {
		i := instance{name: "dify-migrate", kind: "dify-migrate", zone: p.Spec.FullZones()[0]}
		u, err := p.commandUnit(i, c.Migrate)
		if err != nil {
			return err
		}
		u.Zone = ""
		if err := p.addTask(u, after); err != nil {
			return err
		}
		after = []string{"dify-migrate"}
	}
	apis, err := p.apis()
	if err != nil {
		return err
	}
	workers, err := p.workers()
	if err != nil {
		return err
	}
	for _, i := range slices.Concat(apis, workers) {
		command := c.API
		if i.kind == "dify-worker" {
			command = c.Worker
		}
		u, err := p.commandUnit(i, command)
		if err != nil {
			return err
		}
		u.After = after
		u.ReadyTimeout = c.StartTimeout.Std()
		if i.kind == "dify-api" {
			u.Ready = func(ctx context.Context) error { return getOK(ctx, "http://"+i.address()+p.Spec.Dify.HealthPath) }
		}
		// gunicorn cuts streams 30 s after it was asked to stop.
		u.Process.StopTimeout = stopGrace(30 * time.Second)
		if err := p.add(u, nil); err != nil {
			return err
		}
	}
	return nil
}

// commandUnit is one process of a Dify checkout.
func (p *planner) commandUnit(i instance, command []string) (process.Unit, error) {
	env, err := p.difyEnvironment(i)
	if err != nil {
		return process.Unit{}, err
	}
	words := strings.NewReplacer("{host}", i.host, "{port}", strconv.Itoa(i.port), "{zone}", i.zone, "{name}", i.name)
	args := make([]string, len(command))
	for n, word := range command {
		args[n] = words.Replace(word)
	}
	work := p.Spec.Dify.Command.WorkDir
	path := args[0]
	if !filepath.IsAbs(path) && strings.ContainsRune(path, filepath.Separator) {
		path = filepath.Join(work, path)
	} else if path, err = lookPath(path); err != nil {
		return process.Unit{}, fmt.Errorf("dify.command: %w", err)
	}
	address := ""
	if i.host != "" {
		address = i.address()
	}
	return process.Unit{
		Name: i.name, Kind: i.kind, Zone: i.zone, Address: address,
		Process: &process.Spec{Path: path, Args: args[1:], Dir: work, Env: env},
		Prepare: func(context.Context) error { return process.MkdirAll(p.storageDir(), 0o700, p.Owner) },
	}, nil
}

// difyEnvironment connects a Dify process to the stack, with Dify's own names,
// old and new. Entries of dify.command.env win.
func (p *planner) difyEnvironment(i instance) ([]string, error) {
	host, err := p.balancerHost()
	if err != nil {
		return nil, err
	}
	secret := map[string]string{}
	for _, name := range []string{"postgres-dify", "redis-dify", "milvus-root", "dify-secret-key"} {
		if secret[name], err = p.secrets.Read(name); err != nil {
			return nil, err
		}
	}
	mode := map[string]string{"dify-api": "api", "dify-worker": "worker", "dify-migrate": "migration"}[i.kind]
	env := map[string]string{
		"PATH": os.Getenv("PATH"), "HOME": p.storageDir(), "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1",
		"MODE": mode, "EDITION": "SELF_HOSTED", "DEPLOY_ENV": "PRODUCTION",
		"SECRET_KEY": secret["dify-secret-key"],
		"DB_HOST":    host, "DB_PORT": strconv.Itoa(postgresPort), "DB_USERNAME": "dify", "DB_PASSWORD": secret["postgres-dify"], "DB_DATABASE": "dify",
		"REDIS_HOST": host, "REDIS_PORT": strconv.Itoa(redisPort), "REDIS_USERNAME": "dify", "REDIS_PASSWORD": secret["redis-dify"], "REDIS_DB": "0",
		"CELERY_BROKER_URL": fmt.Sprintf("redis://dify:%s@%s:%d/1", secret["redis-dify"], host, redisPort),
		"VECTOR_STORE":      "milvus",
		"MILVUS_HOST":       host, "MILVUS_PORT": strconv.Itoa(milvusPort), "MILVUS_USER": "root", "MILVUS_PASSWORD": secret["milvus-root"],
		"MILVUS_URI":   fmt.Sprintf("http://%s:%d", host, milvusPort),
		"STORAGE_TYPE": "local", "STORAGE_LOCAL_PATH": p.storageDir(), "OPENDAL_SCHEME": "fs", "OPENDAL_FS_ROOT": p.storageDir(),
		// Migrations run once, before any replica.
		"MIGRATION_ENABLED": strconv.FormatBool(mode == "migration"),
		"DIFY_BIND_ADDRESS": i.host, "DIFY_PORT": strconv.Itoa(i.port),
	}
	for key, value := range p.Spec.Dify.Command.Env {
		env[key] = value.Reveal()
	}
	var lines []string
	for key, value := range env {
		lines = append(lines, key+"="+value)
	}
	slices.Sort(lines)
	return lines, nil
}
