package pgproxy

import (
	"context"
	"errors"
	"time"

	"fournines/pgproxy/route"
)

// router decides which servers may run a text.
type router interface {
	Route(sql []byte) route.Decision
	// Explain says more about a decision, for the console.
	Explain(sql []byte) route.Explanation
	// Changed tells that what is known of the database's functions and
	// relations holds no longer.
	Changed()
}

// catalogRouter is a router with the catalog of a real database.
type catalogRouter struct {
	*route.Router
	*route.Database
}

// errCatalog says that nobody can be asked for the catalog at the moment.
var errCatalog = errors.New("no primary to read the catalog from")

// catalogReader reads the catalog of one database as a role that has logged in
// to it, so that it may.
type catalogReader struct {
	p              *Proxy
	database, user string
}

// Query implements route.Querier on a connection of its own, since the catalog
// is read seldom.
func (c *catalogReader) Query(ctx context.Context, sql string, row func(values [][]byte) error) error {
	v := c.p.tracker.View()
	if v.Primary == nil {
		return errCatalog
	}
	l := c.p.live.Load()
	acc, ok := l.accounts[c.user]
	if !ok {
		return newError("FATAL", codeNoAuthorisation, "role %q may no longer log in", c.user)
	}
	conn, err := connect(ctx, l, v.Primary.Endpoint, c.user, acc.password, c.database)
	if err != nil {
		return err
	}
	defer func() {
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 100*time.Millisecond)
		defer cancel()
		_ = conn.Close(cctx)
	}()
	results := conn.Exec(ctx, sql)
	for results.NextResult() {
		r := results.ResultReader()
		for r.NextRow() {
			if err := row(r.Values()); err != nil {
				_ = conn.Conn().Close() // the rest is not wanted
				_ = results.Close()
				return err
			}
		}
		if _, err := r.Close(); err != nil {
			_ = results.Close()
			return err
		}
	}
	return results.Close()
}

// maxDatabases bounds the databases whose reads are split; the names come from
// clients, but only who has logged in to one counts.
const maxDatabases = 100

// routerFor returns the router of a database, or nil when there are too many.
func (p *Proxy) routerFor(database, user string) router {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.routers[database]
	if r == nil && len(p.routers) < maxDatabases && !p.draining {
		r = p.newRouter(database, user)
		p.routers[database] = r
	}
	return r
}

// catalogRouterFor makes the router of a database, whose catalog is read from
// now on until the proxy stops. p.mu is held.
func (p *Proxy) catalogRouterFor(database, user string) router {
	db := route.NewDatabase(&catalogReader{p, database, user}, route.DatabaseConfig{Log: p.log.With("part", "catalog", "database", database)})
	p.wg.Go(func() { _ = db.Run(p.hard) })
	return &catalogRouter{Router: route.New(db, route.Config{}), Database: db}
}

// catalogsChanged makes all routers read their catalogs again, after a failover.
func (p *Proxy) catalogsChanged() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.routers {
		r.Changed()
	}
}

var _ route.Querier = (*catalogReader)(nil)
