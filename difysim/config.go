package difysim

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"fournines/internal/strictyaml"
)

// Config is the configuration of one simulator process. The zero value is not
// usable; start from DefaultConfig.
type Config struct {
	// Listen is the address of the API, or of the worker's health and metrics;
	// default 0.0.0.0:5001.
	Listen string `yaml:"listen"`
	// Instance names this process in metrics, queue messages and X-Dify-Instance;
	// default the host name with the process number.
	Instance string `yaml:"instance"`
	// Version is what X-Version and /health say; default 0.6.9.
	Version string `yaml:"version"`
	// Environment is what X-Env says; default PRODUCTION.
	Environment string `yaml:"environment"`
	// LogLevel is debug, info, warn or error; default info.
	LogLevel string `yaml:"logLevel"`
	// SeedFile holds tenant, apps, keys and datasets that migrate creates; empty
	// means none. See Seed.
	SeedFile string `yaml:"seedFile"`
	// SecretKeyFile holds SECRET_KEY; it is read and checked for presence only.
	SecretKeyFile string `yaml:"secretKeyFile"`
	// EventBus is inProcess (Dify before 1.13) or pubsub (streams of workflows
	// and advanced chats run in the worker); default inProcess.
	EventBus string `yaml:"eventBus"`
	// MigrationTimeout bounds the wait for another migration; default 2m.
	MigrationTimeout time.Duration `yaml:"migrationTimeout"`

	Database DatabaseConfig `yaml:"database"`
	Redis    RedisConfig    `yaml:"redis"`
	// Broker is Celery's Redis; an empty host means the same server as redis.
	Broker   RedisConfig    `yaml:"broker"`
	Vector   VectorConfig   `yaml:"vector"`
	Storage  StorageConfig  `yaml:"storage"`
	CPU      CPUConfig      `yaml:"cpu"`
	Answer   AnswerConfig   `yaml:"answer"`
	Server   ServerConfig   `yaml:"server"`
	Indexing IndexingConfig `yaml:"indexing"`
}

// DatabaseConfig says where PostgreSQL is.
type DatabaseConfig struct {
	// Host and Port of PostgreSQL or a proxy before it; default 127.0.0.1:5432.
	Host string `yaml:"host"`
	Port int    `yaml:"port"`
	// User and Name of the database; default dify.
	User string `yaml:"user"`
	Name string `yaml:"name"`
	// PasswordFile holds the password; empty means none.
	PasswordFile string `yaml:"passwordFile"`
	// PoolSize (1 to 1000, default 30), MaxOverflow (0 to 1000, default 10) and
	// PoolRecycle (default 1h) are SQLAlchemy's.
	PoolSize    int           `yaml:"poolSize"`
	MaxOverflow int           `yaml:"maxOverflow"`
	PoolTimeout time.Duration `yaml:"poolTimeout"`
	PoolRecycle time.Duration `yaml:"poolRecycle"`
	// StatementTimeout bounds one statement, 100ms to 1h; default 30s.
	// Dify has none.
	StatementTimeout time.Duration `yaml:"statementTimeout"`

	password string
}

// RedisConfig says where one Redis database is.
type RedisConfig struct {
	// Host and Port; default 127.0.0.1:6379.
	Host string `yaml:"host"`
	Port int    `yaml:"port"`
	// Username of the ACL; empty means the default user.
	Username string `yaml:"username"`
	// PasswordFile holds the password; empty means none.
	PasswordFile string `yaml:"passwordFile"`
	// DB is the logical database, 0 to 15; default 0, the broker's 1.
	DB int `yaml:"db"`
	// ReadTimeout bounds one answer; default 5s as Dify 1.14, -1s means never as
	// Dify before it.
	ReadTimeout time.Duration `yaml:"readTimeout"`

	password string
}

// VectorConfig says where vectors are kept.
type VectorConfig struct {
	// Store is milvus or none; default milvus.
	Store string `yaml:"store"`
	// Host and Port of Milvus; default 127.0.0.1:19530.
	Host string `yaml:"host"`
	Port int    `yaml:"port"`
	// User and PasswordFile are the account; an empty user sends none.
	User         string `yaml:"user"`
	PasswordFile string `yaml:"passwordFile"`
	// Database of Milvus; empty means the default one.
	Database string `yaml:"database"`
	// Dimension of the embeddings, 8 to 4096; default 256.
	Dimension int `yaml:"dimension"`
	// Timeout of one call; default 10s.
	Timeout time.Duration `yaml:"timeout"`

	password string
}

// StorageConfig says where files are kept.
type StorageConfig struct {
	// Path of the folder that all replicas share; default storage.
	Path string `yaml:"path"`
	// UploadLimit is the largest file in bytes; default 15 MiB.
	UploadLimit int64 `yaml:"uploadLimit"`
}

// CPUConfig is the cost of a request on the instance's one core.
type CPUConfig struct {
	// Cost of one generation or retrieval request, 0 to 1m; default 100ms.
	Cost time.Duration `yaml:"cost"`
	// Mode is hold (reserve time on a virtual core, burn nothing) or burn;
	// default hold.
	Mode string `yaml:"mode"`
	// Slice is the longest turn on the core, 1ms to 1s; default 5ms.
	Slice time.Duration `yaml:"slice"`
	// FirstShare is the part of the cost before the first event, 0 to 1; default
	// 0.4. The rest is spread over the chunks.
	FirstShare float64 `yaml:"firstShare"`
	// LightCost is the cost of every other request, /health included; default 1ms.
	LightCost time.Duration `yaml:"lightCost"`
}

// AnswerConfig shapes the answers.
type AnswerConfig struct {
	// Tokens of an answer, 1 to 100000; default 24.
	Tokens int `yaml:"tokens"`
	// TokensPerSecond of the pretended model, above 0; default 40.
	TokensPerSecond float64 `yaml:"tokensPerSecond"`
	// FirstTokenDelay is the model's thinking time; default 100ms.
	FirstTokenDelay time.Duration `yaml:"firstTokenDelay"`
}

// ServerConfig is gunicorn's part.
type ServerConfig struct {
	// WorkerConnections is how many connections are open at once; others wait in
	// the listen queue. 1 to 100000, default 1000.
	WorkerConnections int `yaml:"workerConnections"`
	// KeepAlive is how long an idle connection stays open; default 2s.
	KeepAlive time.Duration `yaml:"keepAlive"`
	// GracefulTimeout is the time for running requests at a stop; default 30s.
	GracefulTimeout time.Duration `yaml:"gracefulTimeout"`
	// PingInterval of streams; default 10s.
	PingInterval time.Duration `yaml:"pingInterval"`
	// MaxExecutionTime stops a generation; default 10m.
	MaxExecutionTime time.Duration `yaml:"maxExecutionTime"`
}

// IndexingConfig shapes the worker.
type IndexingConfig struct {
	// Concurrency is how many tasks run at once, 1 to 64; default 1.
	Concurrency int `yaml:"concurrency"`
	// SegmentLength is the longest segment in characters, 20 to 10000; default 500.
	SegmentLength int `yaml:"segmentLength"`
	// EmbeddingDelay is the time of the embedding model per segment; default 5ms.
	EmbeddingDelay time.Duration `yaml:"embeddingDelay"`
	// Visibility is Celery's visibility timeout; default 1h.
	Visibility time.Duration `yaml:"visibility"`
}

// The values of Config.EventBus, CPU.Mode and Vector.Store.
const (
	BusInProcess = "inProcess"
	BusPubSub    = "pubsub"
	CPUHold      = "hold"
	CPUBurn      = "burn"
	VectorMilvus = "milvus"
	VectorNone   = "none"
)

// DefaultConfig returns the defaults that the fields document.
func DefaultConfig() Config {
	host, err := os.Hostname()
	if err != nil {
		host = "dify"
	}
	return Config{
		Listen: "0.0.0.0:5001", Instance: fmt.Sprintf("%s-%d", host, os.Getpid()),
		Version: "0.6.9", Environment: "PRODUCTION", LogLevel: "info", EventBus: BusInProcess,
		MigrationTimeout: 2 * time.Minute,
		Database: DatabaseConfig{
			Host: "127.0.0.1", Port: 5432, User: "dify", Name: "dify", PoolSize: 30, MaxOverflow: 10,
			PoolTimeout: 30 * time.Second, PoolRecycle: time.Hour, StatementTimeout: 30 * time.Second,
		},
		Redis:   RedisConfig{Host: "127.0.0.1", Port: 6379, ReadTimeout: 5 * time.Second},
		Broker:  RedisConfig{DB: 1, ReadTimeout: 5 * time.Second},
		Vector:  VectorConfig{Store: VectorMilvus, Host: "127.0.0.1", Port: 19530, Dimension: 256, Timeout: 10 * time.Second},
		Storage: StorageConfig{Path: "storage", UploadLimit: 15 << 20},
		CPU:     CPUConfig{Cost: 100 * time.Millisecond, Mode: CPUHold, Slice: 5 * time.Millisecond, FirstShare: 0.4, LightCost: time.Millisecond},
		Answer:  AnswerConfig{Tokens: 24, TokensPerSecond: 40, FirstTokenDelay: 100 * time.Millisecond},
		Server: ServerConfig{
			WorkerConnections: 1000, KeepAlive: 2 * time.Second, GracefulTimeout: 30 * time.Second,
			PingInterval: 10 * time.Second, MaxExecutionTime: 10 * time.Minute,
		},
		Indexing: IndexingConfig{Concurrency: 1, SegmentLength: 500, EmbeddingDelay: 5 * time.Millisecond, Visibility: time.Hour},
	}
}

// LoadConfig reads the file (none when path is empty), applies the environment
// under Dify's own names, reads the password files and validates.
func LoadConfig(path string, getenv func(string) string) (Config, error) {
	cfg := DefaultConfig()
	if path != "" {
		data, err := os.ReadFile(path)
		if err != nil {
			return Config{}, fmt.Errorf("read configuration: %w", err)
		}
		if err := strictyaml.Unmarshal(path, data, &cfg); err != nil {
			return Config{}, err
		}
	}
	if err := cfg.readPasswords(); err != nil {
		return Config{}, err
	}
	if err := cfg.applyEnvironment(getenv); err != nil {
		return Config{}, err
	}
	if cfg.Broker.Host == "" {
		cfg.Broker.Host, cfg.Broker.Port = cfg.Redis.Host, cfg.Redis.Port
		cfg.Broker.Username, cfg.Broker.password = cfg.Redis.Username, cfg.Redis.password
	}
	return cfg, cfg.Validate()
}

func (c *Config) readPasswords() error {
	var errs []error
	for _, f := range []struct {
		field, path string
		into        *string
	}{
		{"database.passwordFile", c.Database.PasswordFile, &c.Database.password},
		{"redis.passwordFile", c.Redis.PasswordFile, &c.Redis.password},
		{"broker.passwordFile", c.Broker.PasswordFile, &c.Broker.password},
		{"vector.passwordFile", c.Vector.PasswordFile, &c.Vector.password},
	} {
		if f.path == "" {
			continue
		}
		data, err := os.ReadFile(f.path)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.field, err))
			continue
		}
		*f.into = strings.TrimRight(string(data), "\r\n")
	}
	if c.SecretKeyFile != "" {
		if data, err := os.ReadFile(c.SecretKeyFile); err != nil {
			errs = append(errs, fmt.Errorf("secretKeyFile: %w", err))
		} else if len(strings.TrimSpace(string(data))) == 0 {
			errs = append(errs, fmt.Errorf("secretKeyFile: %s is empty", c.SecretKeyFile))
		}
	}
	return errors.Join(errs...)
}

// applyEnvironment overrides fields with the variables that Dify reads.
func (c *Config) applyEnvironment(getenv func(string) string) error {
	var errs []error
	text := func(name string, into *string) {
		if v := getenv(name); v != "" {
			*into = v
		}
	}
	number := func(name string, into *int) {
		v := getenv(name)
		if v == "" {
			return
		}
		n, err := strconv.Atoi(v)
		if err != nil {
			errs = append(errs, fmt.Errorf("environment %s=%q: want a number", name, v))
			return
		}
		*into = n
	}
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		host, port = "0.0.0.0", "5001"
	}
	bind, dport := getenv("DIFY_BIND_ADDRESS"), getenv("DIFY_PORT")
	if bind != "" {
		host = bind
	}
	if dport != "" {
		port = dport
	}
	if bind != "" || dport != "" {
		c.Listen = net.JoinHostPort(host, port)
	}
	text("DB_HOST", &c.Database.Host)
	number("DB_PORT", &c.Database.Port)
	text("DB_USERNAME", &c.Database.User)
	text("DB_PASSWORD", &c.Database.password)
	text("DB_DATABASE", &c.Database.Name)
	number("SQLALCHEMY_POOL_SIZE", &c.Database.PoolSize)
	number("SQLALCHEMY_MAX_OVERFLOW", &c.Database.MaxOverflow)
	text("REDIS_HOST", &c.Redis.Host)
	number("REDIS_PORT", &c.Redis.Port)
	text("REDIS_USERNAME", &c.Redis.Username)
	text("REDIS_PASSWORD", &c.Redis.password)
	number("REDIS_DB", &c.Redis.DB)
	if v := getenv("CELERY_BROKER_URL"); v != "" {
		if err := c.Broker.fromURL(v); err != nil {
			errs = append(errs, fmt.Errorf("environment CELERY_BROKER_URL: %w", err))
		}
	}
	switch v := getenv("VECTOR_STORE"); v {
	case "", VectorMilvus, VectorNone:
		text("VECTOR_STORE", &c.Vector.Store)
	default:
		errs = append(errs, fmt.Errorf("environment VECTOR_STORE=%q: the simulator knows %s and %s", v, VectorMilvus, VectorNone))
	}
	text("MILVUS_HOST", &c.Vector.Host)
	number("MILVUS_PORT", &c.Vector.Port)
	text("MILVUS_USER", &c.Vector.User)
	text("MILVUS_PASSWORD", &c.Vector.password)
	text("MILVUS_DATABASE", &c.Vector.Database)
	if v := getenv("MILVUS_URI"); v != "" {
		u, err := url.Parse(v)
		if err != nil || u.Hostname() == "" {
			errs = append(errs, fmt.Errorf("environment MILVUS_URI=%q: want http://host:port", v))
		} else {
			c.Vector.Host = u.Hostname()
			if p, err := strconv.Atoi(u.Port()); err == nil {
				c.Vector.Port = p
			}
		}
	}
	if v := getenv("STORAGE_TYPE"); v != "" && v != "local" && v != "opendal" {
		errs = append(errs, fmt.Errorf("environment STORAGE_TYPE=%q: the simulator keeps files in a folder: want local", v))
	}
	text("OPENDAL_FS_ROOT", &c.Storage.Path)
	text("STORAGE_LOCAL_PATH", &c.Storage.Path)
	number("SERVER_WORKER_CONNECTIONS", &c.Server.WorkerConnections)
	number("CELERY_WORKER_AMOUNT", &c.Indexing.Concurrency)
	text("DIFYSIM_SEED_FILE", &c.SeedFile)
	text("DIFYSIM_INSTANCE", &c.Instance)
	return errors.Join(errs...)
}

// fromURL reads redis://user:password@host:port/db. Its errors never show the
// password.
func (r *RedisConfig) fromURL(raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "redis" || u.Hostname() == "" {
		return errors.New("want redis://user:password@host:port/db")
	}
	r.Host, r.Port = u.Hostname(), 6379
	if p := u.Port(); p != "" {
		if r.Port, err = strconv.Atoi(p); err != nil {
			return fmt.Errorf("port %q: want a number", p)
		}
	}
	r.Username = u.User.Username()
	r.password, _ = u.User.Password()
	if db := strings.Trim(u.Path, "/"); db != "" {
		if r.DB, err = strconv.Atoi(db); err != nil {
			return fmt.Errorf("database %q: want a number", db)
		}
	}
	return nil
}

// Validate reports every problem, each with its field.
func (c *Config) Validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("difysim: %s: %s", field, fmt.Sprintf(format, args...)))
	}
	between := func(field string, v, lo, hi int) {
		if v < lo || v > hi {
			bad(field, "%d: want %d to %d", v, lo, hi)
		}
	}
	span := func(field string, v, lo, hi time.Duration) {
		if v < lo || v > hi {
			bad(field, "%v: want %v to %v", v, lo, hi)
		}
	}
	oneOf := func(field, v string, want ...string) {
		for _, w := range want {
			if v == w {
				return
			}
		}
		bad(field, "%q: want %s", v, strings.Join(want, " or "))
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		bad("listen", "%q: want host:port", c.Listen)
	}
	if c.Instance == "" {
		bad("instance", "must not be empty")
	}
	oneOf("eventBus", c.EventBus, BusInProcess, BusPubSub)
	oneOf("cpu.mode", c.CPU.Mode, CPUHold, CPUBurn)
	oneOf("vector.store", c.Vector.Store, VectorMilvus, VectorNone)
	between("database.port", c.Database.Port, 1, 65535)
	between("database.poolSize", c.Database.PoolSize, 1, 1000)
	between("database.maxOverflow", c.Database.MaxOverflow, 0, 1000)
	between("redis.port", c.Redis.Port, 1, 65535)
	between("redis.db", c.Redis.DB, 0, 15)
	between("broker.db", c.Broker.DB, 0, 15)
	between("vector.port", c.Vector.Port, 1, 65535)
	between("vector.dimension", c.Vector.Dimension, 8, 4096)
	between("answer.tokens", c.Answer.Tokens, 1, maxTokens)
	between("server.workerConnections", c.Server.WorkerConnections, 1, 100000)
	between("indexing.concurrency", c.Indexing.Concurrency, 1, 64)
	between("indexing.segmentLength", c.Indexing.SegmentLength, 20, 10000)
	span("cpu.cost", c.CPU.Cost, 0, time.Minute)
	span("cpu.lightCost", c.CPU.LightCost, 0, time.Minute)
	span("cpu.slice", c.CPU.Slice, time.Millisecond, time.Second)
	span("database.statementTimeout", c.Database.StatementTimeout, 100*time.Millisecond, time.Hour)
	span("server.keepAlive", c.Server.KeepAlive, time.Millisecond, time.Hour)
	span("server.gracefulTimeout", c.Server.GracefulTimeout, 0, time.Hour)
	span("server.pingInterval", c.Server.PingInterval, 10*time.Millisecond, time.Hour)
	span("server.maxExecutionTime", c.Server.MaxExecutionTime, time.Second, 24*time.Hour)
	span("answer.firstTokenDelay", c.Answer.FirstTokenDelay, 0, time.Hour)
	span("indexing.embeddingDelay", c.Indexing.EmbeddingDelay, 0, time.Hour)
	if c.CPU.FirstShare < 0 || c.CPU.FirstShare > 1 {
		bad("cpu.firstShare", "%v: want 0 to 1", c.CPU.FirstShare)
	}
	if c.Answer.TokensPerSecond <= 0 {
		bad("answer.tokensPerSecond", "%v: want more than 0", c.Answer.TokensPerSecond)
	}
	if c.Storage.UploadLimit < 1 {
		bad("storage.uploadLimit", "%d: want at least 1", c.Storage.UploadLimit)
	}
	if c.Database.Host == "" {
		bad("database.host", "must not be empty")
	}
	if c.Redis.Host == "" {
		bad("redis.host", "must not be empty")
	}
	return errors.Join(errs...)
}

// WithPasswords returns a copy that uses these passwords instead of files; for
// tests and embedders that hold secrets in memory.
func (c Config) WithPasswords(database, redis, vector string) Config {
	c.Database.password, c.Redis.password, c.Broker.password, c.Vector.password = database, redis, redis, vector
	return c
}
