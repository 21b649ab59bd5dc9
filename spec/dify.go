package spec

// Source says where Dify comes from.
type Source string

// The sources of Dify.
const (
	// SourceSimulator runs difysim, a workload that speaks Dify's API.
	SourceSimulator Source = "simulator"
	// SourceCommand runs the commands of dify.command, a Dify checkout.
	SourceCommand Source = "command"
	// SourceExternal uses the instances that dify.external lists.
	SourceExternal Source = "external"
)

// CPUMode says how the simulator spends the CPU cost of a request.
type CPUMode string

// The CPU modes of the simulator.
const (
	// CPUHold keeps the instance's single simulated core busy without
	// spending real CPU time.
	CPUHold CPUMode = "hold"
	// CPUBurn computes for that long on a real core.
	CPUBurn CPUMode = "burn"
)

// Dify says where Dify comes from and how many instances run.
type Dify struct {
	// Source of Dify: simulator runs a workload that speaks Dify's API, for
	// trials and drills; command runs a Dify checkout on this machine (see
	// command); external uses instances that already run (see external).
	Source Source `yaml:"source" enum:"simulator,command,external"`
	// Version of Dify, 0.6.9 or later. It decides which environment variables
	// and queues the instances get, and what the simulator reports.
	Version string `yaml:"version" pattern:"^[0-9]+\\.[0-9]+\\.[0-9]+(-[0-9A-Za-z.-]+)?$" wants:"a version such as 1.13.3"`
	// APIReplicasPerZone is the number of api instances in each full zone.
	// Not used when source is external.
	APIReplicasPerZone int `yaml:"apiReplicasPerZone" range:"1..9"`
	// Workers is the number of Celery workers in all, spread over the full
	// zones. Not used when source is external.
	Workers int `yaml:"workers" range:"0..9"`
	// HealthPath is the path that answers 200 while an api instance lives.
	HealthPath string `yaml:"healthPath" pattern:"^/[^\\s?#]*$" wants:"a path that starts with / and has no query"`
	// Simulator is the workload of source simulator; read for that source
	// only.
	Simulator Simulator `yaml:"simulator"`
	// Command is how a Dify checkout is started; read for source command only.
	Command Command `yaml:"command"`
	// External is the list of api instances that run already; read for source
	// external only.
	External []External `yaml:"external" range:"0..1000"`
}

// Simulator tunes the workload that stands in for Dify.
type Simulator struct {
	// CPUCost is the time one request occupies the single core that a Python
	// process can use. With the default, one instance saturates at 10
	// requests a second, as a 4-core Dify instance does.
	CPUCost Duration `yaml:"cpuCost" range:"0s..10s"`
	// CPUMode is how that time is spent: hold occupies the instance without
	// using real CPU, so that many instances fit on a small machine; burn
	// computes for that long.
	CPUMode CPUMode `yaml:"cpuMode" enum:"hold,burn"`
	// TokensPerSecond is the speed of the simulated model in a stream.
	TokensPerSecond int `yaml:"tokensPerSecond" range:"1..100000"`
	// AnswerTokens is the length of an answer, in tokens.
	AnswerTokens int `yaml:"answerTokens" range:"1..100000"`
}

// Command says how to start a Dify checkout.
type Command struct {
	// API is the program and arguments of an api instance. The words {host},
	// {port}, {zone} and {name} in it are replaced for each instance; the
	// generated environment carries DIFY_BIND_ADDRESS and DIFY_PORT too. A
	// program with a slash in its name is looked up from workDir.
	API []string `yaml:"api" range:"0..100"`
	// Worker is the program and arguments of a Celery worker, with the same
	// replacements. Needed unless dify.workers is 0.
	Worker []string `yaml:"worker" range:"0..100"`
	// Migrate is the program and arguments that bring the database schema up
	// to date. It runs once, before any instance; empty when nothing has to
	// be migrated.
	Migrate []string `yaml:"migrate" range:"0..100"`
	// WorkDir is the directory the commands run in: the absolute path of the
	// api folder of the checkout. Needed for source command.
	WorkDir string `yaml:"workDir"`
	// StorageDir is the folder for uploads and workspace keys. All instances
	// share it. An absolute path; empty means a folder in the data directory.
	StorageDir string `yaml:"storageDir"`
	// Env is a map of further environment variables; it overrides generated
	// ones. Values are treated as secrets: they are never printed.
	Env map[string]Secret `yaml:"env"`
	// StartTimeout is how long an instance may take until its health path
	// answers.
	StartTimeout Duration `yaml:"startTimeout" range:"1s..30m"`
}

// External is a Dify api instance that runs already.
type External struct {
	// URL of the instance, without a path: http://10.0.0.7:5001.
	URL string `yaml:"url"`
	// Zone the instance stands in; the name of a full zone.
	Zone string `yaml:"zone"`
}

func defaultDify() Dify {
	return Dify{
		Source:             SourceSimulator,
		Version:            "0.6.9",
		APIReplicasPerZone: 2,
		Workers:            1,
		HealthPath:         "/health",
		Simulator: Simulator{
			CPUCost:         Duration(100 * millisecond),
			CPUMode:         CPUHold,
			TokensPerSecond: 50,
			AnswerTokens:    100,
		},
		Command: Command{
			API:          []string{},
			Worker:       []string{},
			Migrate:      []string{},
			Env:          map[string]Secret{},
			StartTimeout: Duration(3 * minute),
		},
		External: []External{},
	}
}
