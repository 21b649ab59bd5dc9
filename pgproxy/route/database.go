package route

import (
	"context"
	_ "embed" // catalog.sql
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"sync"
	"sync/atomic"
	"time"
)

// Blind is the version of a catalog whose answers must not be used for the
// moment. Router sends everything that names something to the primary then,
// and keeps what it knows of other versions.
const Blind = ^uint64(0)

const (
	defaultInterval = time.Minute
	defaultMaxNames = 200_000
	// A reading costs the primary some hundred milliseconds at most, so misses
	// wait at least leastGap, and twice as long each time that nothing was new.
	leastGap    = time.Second
	retryGap    = time.Second
	maxCatalog  = 64 << 20 // bytes of names and definitions
	readTimeout = 30 * time.Second
)

//go:embed catalog.sql
var catalogSQL string

// Querier runs a text of several statements on the primary as one simple query
// and gives the rows of all results to row, which may keep nothing of them.
// Values are in text form, NULL is nil. The account needs no rights beyond
// those of every role: system catalogs are all that is read. An error of row
// ends the query.
type Querier interface {
	Query(ctx context.Context, sql string, row func(values [][]byte) error) error
}

// DatabaseConfig of a Database. The zero value is good.
type DatabaseConfig struct {
	// Interval is how often the catalog is read without a cause, so how long a
	// change that was made past this proxy may go unseen; 0 means a minute.
	Interval time.Duration
	// MaxNames bounds the names that are remembered; a database with more is
	// not known at all. 0 means 200,000.
	MaxNames int
	// Log gets a line when reading fails for the first time and when it works
	// again; nil means none.
	Log *slog.Logger
}

// Database is a Catalog of what a real database holds. It is Blind until Run
// has read it for the first time. When it cannot be read again the last reading
// stands: it is as good as the servers that are left.
type Database struct {
	querier Querier
	cfg     DatabaseConfig

	current atomic.Pointer[contents]
	version atomic.Uint64 // Blind, or that of current
	mu      sync.Mutex
	changes uint64 // calls of Changed; with the version of the same moment
	missed  chan struct{}
	changed chan struct{}
}

type objectName struct{ schema, name string }

// contents is one reading. The key with an empty schema holds the worst of all.
type contents struct {
	Functions, Operators map[objectName]Volatility
	Types                map[objectName]bool
	Relations            map[objectName]Relation
	version              uint64
}

// NewDatabase makes a catalog that is read through querier.
func NewDatabase(querier Querier, cfg DatabaseConfig) *Database {
	if cfg.Interval <= 0 {
		cfg.Interval = defaultInterval
	}
	if cfg.MaxNames <= 0 {
		cfg.MaxNames = defaultMaxNames
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	d := &Database{querier: querier, cfg: cfg, missed: make(chan struct{}, 1), changed: make(chan struct{}, 1)}
	d.current.Store(&contents{})
	d.version.Store(Blind)
	return d
}

// Run reads the catalog now, and again after each interval, after Changed, and
// after Missed as often as that is of use. It returns nil when ctx ends.
func (d *Database) Run(ctx context.Context) error {
	gap := leastGap
	failing := false
	for {
		started := time.Now()
		fresh, err := d.read(ctx)
		wait := d.cfg.Interval
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			wait = retryGap
			if !failing {
				d.cfg.Log.Warn("catalog could not be read, the last reading stands", "err", err)
			}
		case failing:
			d.cfg.Log.Info("catalog could be read again")
		}
		failing = err != nil
		if fresh {
			gap = leastGap
		}
		missed := d.missed
		if !d.sleep(ctx, wait, started.Add(gap), missed) {
			return nil
		}
		gap = min(2*gap, d.cfg.Interval)
	}
}

// sleep waits for a cause to read again; a miss counts from a time on.
func (d *Database) sleep(ctx context.Context, wait time.Duration, missesFrom time.Time, missed <-chan struct{}) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case <-d.changed:
			return true
		case <-missed:
			missed = nil
			if rest := time.Until(missesFrom); rest < wait {
				timer.Reset(max(rest, 0))
			}
		}
	}
}

// errTooLarge ends a reading.
var errTooLarge = errors.New("the database has too many names")

// read replaces the contents, and reports whether they are other ones.
func (d *Database) read(ctx context.Context) (fresh bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	d.mu.Lock()
	changes := d.changes
	d.mu.Unlock()
	select {
	case <-d.missed: // what was missed so far will be seen
	default:
	}
	c := &contents{
		Functions: make(map[objectName]Volatility), Operators: make(map[objectName]Volatility),
		Types: make(map[objectName]bool), Relations: make(map[objectName]Relation),
	}
	names, size := 0, 0
	err = d.querier.Query(ctx, catalogSQL, func(v [][]byte) error {
		if len(v) != 5 || len(v[0]) != 1 || len(v[3]) != 1 {
			return fmt.Errorf("read catalog: a row of %d values where five are expected", len(v))
		}
		for _, b := range v {
			size += len(b)
		}
		if names++; names > d.cfg.MaxNames || size > maxCatalog {
			return errTooLarge
		}
		c.add(v[0][0], objectName{string(v[1]), string(v[2])}, v[3][0], v[4])
		return nil
	})
	switch {
	case errors.Is(err, errTooLarge):
		// What was read before may be wrong by now.
		d.version.Store(Blind)
		return false, fmt.Errorf("%w: more than %d names or %d MiB", errTooLarge, d.cfg.MaxNames, maxCatalog>>20)
	case err != nil:
		return false, fmt.Errorf("read catalog: %w", err)
	case len(c.Functions) == 0 || len(c.Relations) == 0:
		return false, errors.New("read catalog: no functions or no relations")
	}
	old := d.current.Load()
	c.version = old.version
	if fresh = !c.equal(old); fresh {
		c.version++
		d.current.Store(c)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.changes == changes { // else Run reads again at once
		d.version.Store(c.version)
	}
	return fresh, nil
}

// equal compares all but the version.
func (c *contents) equal(o *contents) bool {
	return reflect.DeepEqual(c.Functions, o.Functions) && reflect.DeepEqual(c.Operators, o.Operators) &&
		reflect.DeepEqual(c.Types, o.Types) && reflect.DeepEqual(c.Relations, o.Relations)
}

// add takes a row of catalog.sql.
func (c *contents) add(kind byte, n objectName, value byte, definition []byte) {
	all := objectName{name: n.name}
	switch kind {
	case 'f', 'o':
		m := c.Functions
		if kind == 'o' {
			m = c.Operators
		}
		v := Volatile
		if value >= '0' && value <= '3' {
			v = [...]Volatility{Immutable, Stable, Harmless, Volatile}[value-'0']
		}
		m[n] = v
		m[all] = max(m[all], v)
	case 't':
		c.Types[n] = value == 's'
		safe, known := c.Types[all]
		c.Types[all] = value == 's' && (safe || !known)
	case 'r':
		r := Relation{Kind: Unreadable}
		switch value {
		case 't':
			r.Kind = Table
		case 'v':
			r.Kind = View
		}
		if definition != nil {
			r.Definitions = []string{string(definition)}
		}
		c.Relations[n] = r
		worst := c.Relations[all]
		worst.Kind = max(worst.Kind, r.Kind)
		worst.Definitions = append(worst.Definitions, r.Definitions...)
		c.Relations[all] = worst
	}
}

// Function implements Catalog.
func (d *Database) Function(schema, name string) Volatility {
	return d.current.Load().Functions[objectName{schema, name}]
}

// Operator implements Catalog.
func (d *Database) Operator(schema, name string) Volatility {
	return d.current.Load().Operators[objectName{schema, name}]
}

// SafeType implements Catalog.
func (d *Database) SafeType(schema, name string) bool {
	return d.current.Load().Types[objectName{schema, name}]
}

// Relation implements Catalog.
func (d *Database) Relation(schema, name string) Relation {
	return d.current.Load().Relations[objectName{schema, name}]
}

// Version implements Catalog.
func (d *Database) Version() uint64 { return d.version.Load() }

// Missed implements Catalog.
func (d *Database) Missed() {
	select {
	case d.missed <- struct{}{}:
	default:
	}
}

// Changed makes the catalog Blind until it has been read again. Call it when a
// transaction that held DDL (see Facts.DDL) has committed, before its client is
// told, and after a failover.
func (d *Database) Changed() {
	d.mu.Lock()
	d.changes++
	d.version.Store(Blind)
	d.mu.Unlock()
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

var _ Catalog = (*Database)(nil)
