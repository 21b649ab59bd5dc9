package difysim

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"fournines/difysim/celery"
	"fournines/difysim/embed"
	"fournines/difysim/sqlsession"
	"fournines/internal/milvus"
)

// backend is what every role of the simulator talks to.
type backend struct {
	cfg      Config
	log      *slog.Logger
	db       *sqlsession.Engine
	redis    *redis.Client
	broker   *redis.Client
	producer *celery.Producer
	vectors  *milvus.Client // nil when vector.store is none
	core     *core
	metrics  *metrics
	// stub is what stands in for database and Redis, which are nil then; nil in
	// every role but the stub.
	stub *stubState
}

func newBackend(cfg Config, log *slog.Logger, m *metrics) (*backend, error) {
	if cfg.Broker.Host == "" {
		cfg.Broker.Host, cfg.Broker.Port = cfg.Redis.Host, cfg.Redis.Port
		cfg.Broker.Username, cfg.Broker.password = cfg.Redis.Username, cfg.Redis.password
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	overflow := cfg.Database.MaxOverflow
	if overflow == 0 {
		overflow = -1 // the engine's word for none
	}
	db, err := sqlsession.New(sqlsession.Config{
		Host: cfg.Database.Host, Port: cfg.Database.Port, User: cfg.Database.User, Password: cfg.Database.password,
		Database: cfg.Database.Name, PoolSize: cfg.Database.PoolSize, MaxOverflow: overflow,
		PoolTimeout: cfg.Database.PoolTimeout, Recycle: cfg.Database.PoolRecycle,
		StatementTimeout: cfg.Database.StatementTimeout,
	})
	if err != nil {
		return nil, err
	}
	b := &backend{cfg: cfg, log: log, db: db, metrics: m, core: newCore(cfg.CPU, m.cpuSeconds)}
	if cfg.Vector.Store == VectorMilvus {
		b.vectors, err = milvus.New(milvus.Config{
			Address: net.JoinHostPort(cfg.Vector.Host, strconv.Itoa(cfg.Vector.Port)),
			User:    cfg.Vector.User, Password: cfg.Vector.password, Database: cfg.Vector.Database, Timeout: cfg.Vector.Timeout,
		})
		if err != nil {
			return nil, err
		}
	}
	b.redis = newRedis(cfg.Redis)
	b.broker = newRedis(cfg.Broker)
	b.producer = celery.NewProducer(b.broker, cfg.Instance)
	return b, nil
}

// newRedis behaves like redis-py's plain client: one server, RESP2, no retries.
func newRedis(cfg RedisConfig) *redis.Client {
	read := cfg.ReadTimeout
	if read == 0 {
		read = 5 * time.Second
	}
	return redis.NewClient(&redis.Options{
		Addr:     net.JoinHostPort(cfg.Host, strconv.Itoa(cfg.Port)),
		Username: cfg.Username, Password: cfg.password, DB: cfg.DB,
		Protocol: 2, MaxRetries: -1, PoolSize: 200, DialTimeout: 5 * time.Second,
		ReadTimeout: read, WriteTimeout: read, ConnMaxIdleTime: -1,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
}

func (b *backend) close() {
	if b.stub != nil {
		return
	}
	b.db.Close()
	_ = b.redis.Close()
	_ = b.broker.Close()
	if b.vectors != nil {
		_ = b.vectors.Close()
	}
}

// errSchema says that the database is not at the schema this program needs.
var errSchema = errors.New("database schema is not ready")

// checkSchema asks the database for its schema version.
func (b *backend) checkSchema(ctx context.Context) error {
	s := b.db.Session()
	defer s.Close()
	var version string
	found, err := s.First(ctx, "SELECT alembic_version.version_num FROM alembic_version", nil, &version)
	switch {
	case err != nil && strings.Contains(err.Error(), "42P01"):
		return fmt.Errorf("%w: it has no tables yet: run difysim migrate", errSchema)
	case err != nil:
		return err
	case !found:
		return fmt.Errorf("%w: a migration has not finished", errSchema)
	case version != SchemaVersion:
		return fmt.Errorf("%w: it is at %q, this program needs %q: run difysim migrate", errSchema, version, SchemaVersion)
	}
	return nil
}

// checkDeep asks database, schema and Redis; the vector store is not asked,
// because chat goes on without it.
func (b *backend) checkDeep(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := b.checkSchema(ctx); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	if err := b.redis.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("redis: %w", err)
	}
	if err := b.broker.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("broker: %w", err)
	}
	return nil
}

// waitForSchema returns when the schema is there. It calls state with the reason
// of every failed try, and with nil at the end.
func (b *backend) waitForSchema(ctx context.Context, state func(error)) error {
	said := ""
	for {
		probe, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := b.checkSchema(probe)
		cancel()
		if err == nil {
			state(nil)
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		state(err)
		if msg := err.Error(); msg != said {
			b.log.Info("waiting for the database", "err", msg)
			said = msg
		}
		if err := sleep(ctx, 250*time.Millisecond); err != nil {
			return err
		}
	}
}

// collection is the name of a dataset's collection in Milvus.
func collection(datasetID string) string {
	return "Vector_index_" + strings.ReplaceAll(datasetID, "-", "_") + "_Node"
}

const (
	embeddingProvider = "difysim"
	embeddingTTL      = 600 * time.Second
)

// embedQuery returns the vector of a query by way of Dify's cache in Redis. A
// Redis that is away costs the cache, as in Dify it costs the request.
func (b *backend) embedQuery(ctx context.Context, text string) ([]float32, error) {
	h := fnv.New64a()
	_, _ = h.Write([]byte(text))
	key := embeddingProvider + "_" + embed.Name + "_" + strconv.Itoa(b.cfg.Vector.Dimension) + "_" + strconv.FormatUint(h.Sum64(), 16)
	cached, err := b.redis.Get(ctx, key).Result()
	if err == nil {
		if v := decodeVector(cached, b.cfg.Vector.Dimension); v != nil {
			b.redis.Expire(ctx, key, embeddingTTL)
			return v, nil
		}
	} else if !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("embedding cache: %w", err)
	}
	v := embed.Vector(text, b.cfg.Vector.Dimension)
	if err := b.redis.SetEx(ctx, key, encodeVector(v), embeddingTTL).Err(); err != nil { //nolint:staticcheck // Dify sends SETEX, and the proxies should see it
		return nil, fmt.Errorf("embedding cache: %w", err)
	}
	return v, nil
}

func encodeVector(v []float32) string {
	raw := make([]byte, 0, 4*len(v))
	for _, f := range v {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(f))
	}
	return base64.StdEncoding.EncodeToString(raw)
}

func decodeVector(s string, dimension int) []float32 {
	raw, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(raw) != 4*dimension {
		return nil
	}
	v := make([]float32, dimension)
	for i := range v {
		v[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
	}
	return v
}
