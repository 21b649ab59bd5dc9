package pgproxy

import (
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"fournines/internal/pgwire"
	"fournines/pgproxy/pool"
	"fournines/pgproxy/route"
)

// Types of columns.
const (
	oidInt8 = 20
	oidText = 25
)

// consoleTable is the answer of a SHOW command. Columns that PgBouncer has too
// mean the same there.
type consoleTable struct {
	name    string
	meaning string // for SHOW HELP
	columns string // names, separated by spaces; a "#" in front makes a number
	rows    func(p *Proxy) [][]any
}

// consoleTables are all SHOW commands. SHOW HELP is made from them.
func consoleTables() []consoleTable {
	return []consoleTable{
		{
			"pools", "clients and server connections of each pair of database and user; pool_size is that of the primary, and of each standby",
			"database user #cl_active #cl_waiting #cl_idle #sv_active #sv_idle #sv_login #maxwait #maxwait_us pool_mode #pool_size #standby_active #standby_idle #standby_login",
			(*Proxy).showPools,
		},
		{"servers", "server connections", "type user database state addr #port server connect_time #wait #remote_pid #link", (*Proxy).showServers},
		{"clients", "clients", "type user database state addr #port connect_time #wait #wait_us #ptr #link tls application_name #prepared_statements pinned", (*Proxy).showClients},
		{"stats", "totals of each database since the start", "database #total_xact_count #total_query_count #total_sent #total_wait_time", (*Proxy).showStats},
		{"databases", "databases that somebody has used, and where their transactions go", "name host #port database force_user #pool_size #min_pool_size #reserve_pool pool_mode #max_connections #current_connections #paused #disabled", (*Proxy).showDatabases},
		{"backends", "the PostgreSQL servers as the probes see them", "name zone addr #port state #timeline lsn error", (*Proxy).showBackends},
		{"lists", "counts", "list #items", (*Proxy).showLists},
		{"config", "settings, and whether RELOAD changes them", "key value default changeable", (*Proxy).showConfig},
		{"version", "version of this program", "version", func(p *Proxy) [][]any { return [][]any{{"fournines pgproxy " + p.opts.Version}} }},
		{"help", "this list", "command meaning", func(*Proxy) [][]any { return showHelp() }},
	}
}

func showHelp() [][]any {
	var rows [][]any
	for _, t := range consoleTables() {
		rows = append(rows, []any{"SHOW " + t.name, t.meaning})
	}
	return append(rows,
		[]any{"PAUSE [database] [FOR time]", fmt.Sprintf("hold new transactions and wait until the running ones have ended; ends by itself after %v, or the time given", DefaultPauseLease)},
		[]any{"RESUME [database]", "end the pause"},
		[]any{"RELOAD", "read the configuration and the files that it names again, as SIGHUP does"},
		[]any{"EXPLAIN ROUTE 'statement' [IN database]", "where a statement would run, and why; by the catalog of the database, which may be left out when only one is in use"})
}

// render answers with the whole table.
func (t *consoleTable) render(p *Proxy) []byte { return renderTable(t.columns, t.rows(p), "SHOW") }

func renderTable(columns string, rows [][]any, tag string) []byte {
	var described []pgwire.Column
	for name := range strings.FieldsSeq(columns) {
		c := pgwire.Column{Name: name, OID: oidText}
		if name[0] == '#' {
			c = pgwire.Column{Name: name[1:], OID: oidInt8}
		}
		described = append(described, c)
	}
	out := pgwire.AppendRowDescription(nil, described)
	for _, row := range rows {
		values := make([]*string, len(row))
		for i, v := range row {
			if v == nil {
				continue
			}
			s := fmt.Sprint(v)
			if at, ok := v.(time.Time); ok {
				s = at.UTC().Format("2006-01-02 15:04:05 UTC")
			}
			values[i] = &s
		}
		out = pgwire.AppendDataRow(out, values)
	}
	return pgwire.AppendComplete(out, tag)
}

// clientState is one client for the console.
type clientState struct {
	s           *session
	state       string // active, waiting or idle
	wait        time.Duration
	link        uint32 // pid of its server connection
	prepared    int
	pinned      route.Pin
	application string
	user        string
	database    string
}

// clientStates looks at every session that is logged in to a real database.
func (p *Proxy) clientStates() []clientState {
	p.mu.Lock()
	sessions := make([]*session, 0, len(p.sessions))
	for _, s := range p.sessions {
		if !s.console {
			sessions = append(sessions, s)
		}
	}
	p.mu.Unlock()
	sort.Slice(sessions, func(i, j int) bool { return sessions[i].began.Before(sessions[j].began) })
	out := make([]clientState, 0, len(sessions))
	for _, s := range sessions {
		c := clientState{s: s, state: "idle", user: s.user, database: s.database, application: s.startup.values["application_name"]}
		s.mu.Lock()
		if s.srv != nil {
			c.link = s.srv.pid
		}
		if !s.idle() || s.status != 'I' {
			c.state = "active"
		}
		c.prepared, c.pinned = len(s.stmts), s.pinned
		s.mu.Unlock()
		if since := s.waitSince.Load(); since != 0 {
			c.state, c.wait = "waiting", time.Since(time.Unix(0, since))
		}
		out = append(out, c)
	}
	return out
}

// eachPool calls f for every pool, in order of database and user.
func (p *Proxy) eachPool(f func(k poolKey, st pool.Stats)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	keys := make([]poolKey, 0, len(p.pools))
	for k := range p.pools {
		keys = append(keys, k)
	}
	sort.Slice(keys, func(i, j int) bool {
		return keys[i].database < keys[j].database || keys[i].database == keys[j].database && keys[i].user < keys[j].user
	})
	for _, k := range keys {
		f(k, p.pools[k].Stats())
	}
}

// eachStandbyPool calls f for the pool of every pair and standby, in no order.
func (p *Proxy) eachStandbyPool(f func(k standbyKey, st pool.Stats)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, pl := range p.standbyPools {
		f(k, pl.Stats())
	}
}

func (p *Proxy) showPools() (rows [][]any) {
	type counts struct {
		active, waiting, idle int
		longest               time.Duration
	}
	clients := map[poolKey]*counts{}
	for _, c := range p.clientStates() {
		n := clients[poolKey{c.database, c.user}]
		if n == nil {
			n = &counts{}
			clients[poolKey{c.database, c.user}] = n
		}
		switch c.state {
		case "waiting":
			n.waiting++
			n.longest = max(n.longest, c.wait)
		case "active":
			n.active++
		default:
			n.idle++
		}
	}
	standby := map[poolKey]pool.Stats{}
	p.eachStandbyPool(func(k standbyKey, st pool.Stats) {
		sum := standby[k.poolKey]
		sum.Used, sum.Idle, sum.Dialling = sum.Used+st.Used, sum.Idle+st.Idle, sum.Dialling+st.Dialling
		standby[k.poolKey] = sum
	})
	p.eachPool(func(k poolKey, st pool.Stats) {
		n, sb := clients[k], standby[k]
		if n == nil {
			n = &counts{}
		}
		rows = append(rows, []any{
			k.database, k.user, n.active, n.waiting, n.idle, st.Used - st.Dialling, st.Idle, st.Dialling,
			int64(n.longest / time.Second), (n.longest % time.Second).Microseconds(), p.mode, st.Size, sb.Used - sb.Dialling, sb.Idle, sb.Dialling,
		})
	})
	return rows
}

func (p *Proxy) showServers() (rows [][]any) {
	for _, srv := range p.servers() {
		host, port, _ := net.SplitHostPort(srv.target.Endpoint.Address)
		state, link := "idle", any(nil)
		if s := srv.sess.Load(); s != nil {
			state, link = "active", s.pid
		}
		rows = append(rows, []any{
			"S", srv.user, srv.database, state, host, port, srv.target.Endpoint.Name, srv.began, int64(time.Since(srv.usedAt()) / time.Second), srv.pid, link,
		})
	}
	return rows
}

func (p *Proxy) showClients() (rows [][]any) {
	for _, c := range p.clientStates() {
		host, port, _ := net.SplitHostPort(c.s.conn.RemoteAddr().String())
		var link, pinned, secure any
		if c.link != 0 {
			link = c.link
		}
		if c.pinned != route.NoPin {
			pinned = c.pinned.String()
		}
		if t, ok := c.s.conn.(*tls.Conn); ok {
			secure = tls.VersionName(t.ConnectionState().Version)
		}
		rows = append(rows, []any{
			"C", c.user, c.database, c.state, host, port, c.s.began, int64(c.wait / time.Second), (c.wait % time.Second).Microseconds(),
			c.s.pid, link, secure, c.application, c.prepared, pinned,
		})
	}
	return rows
}

func (p *Proxy) showStats() (rows [][]any) {
	all := p.metrics.byDatabase()
	for _, database := range sortedKeys(all) {
		t := all[database]
		rows = append(rows, []any{database, t.transactions, t.queries, t.bytesOut, t.waited.Microseconds()})
	}
	return rows
}

func (p *Proxy) showDatabases() (rows [][]any) {
	host, port := any(nil), any(nil)
	if t := p.tracker.View().Primary; t != nil {
		h, po, _ := net.SplitHostPort(t.Endpoint.Address)
		host, port = h, po
	}
	connections, sizes := map[string]int{}, map[string]int{}
	p.eachPool(func(k poolKey, st pool.Stats) {
		connections[k.database] += st.Idle + st.Used
		sizes[k.database] = max(sizes[k.database], st.Size)
	})
	for _, database := range sortedKeys(connections) {
		paused := 0
		if p.gates.at(database) != nil {
			paused = 1
		}
		rows = append(rows, []any{database, host, port, database, nil, sizes[database], 0, 0, p.mode, 0, connections[database], paused, 0})
	}
	return rows
}

func (p *Proxy) showBackends() (rows [][]any) {
	for _, s := range p.adminStatus().Servers {
		host, port, _ := net.SplitHostPort(s.Address)
		var problem any
		if s.Error != "" {
			problem = s.Error
		}
		rows = append(rows, []any{s.Name, s.Zone, host, port, s.State, s.Timeline, s.LSN, problem})
	}
	return rows
}

func (p *Proxy) showLists() [][]any {
	databases := map[string]bool{}
	pools, used, free := 0, 0, 0
	p.eachPool(func(k poolKey, st pool.Stats) {
		databases[k.database] = true
		pools, used, free = pools+1, used+st.Used, free+st.Idle
	})
	p.eachStandbyPool(func(_ standbyKey, st pool.Stats) { pools, used, free = pools+1, used+st.Used, free+st.Idle })
	return [][]any{
		{"databases", len(databases)}, {"users", len(p.live.Load().accounts)}, {"pools", pools},
		{"used_clients", p.clients.Load()}, {"held_clients", p.held.Load()}, {"free_servers", free}, {"used_servers", used},
	}
}

func (p *Proxy) showConfig() (rows [][]any) {
	cfg, defaults := p.live.Load().cfg, DefaultConfig()
	byDefault := defaults.settings()
	for i, s := range cfg.settings() {
		changeable := "yes"
		if slices.Contains(restartOnly, s.name) {
			changeable = "no"
		}
		rows = append(rows, []any{s.name, s.value, byDefault[i].value, changeable})
	}
	return rows
}

// explainRoute says where a statement would run, by what is known of the
// database, or of the only one in use.
func (p *Proxy) explainRoute(sql, database string) ([]byte, error) {
	p.mu.Lock()
	known := sortedKeys(p.routers)
	if database == "" && len(known) == 1 {
		database = known[0]
	}
	r := p.routers[database]
	p.mu.Unlock()
	switch {
	case r != nil:
	case database != "":
		return nil, newError("ERROR", codeUndefinedDatabase, "nobody has used database %q since the start", database)
	case len(known) > 0:
		return nil, errSyntax("say which database: EXPLAIN ROUTE 'statement' IN %s", strings.Join(known, " | "))
	default:
		return nil, newError("ERROR", codeUndefinedDatabase, "nobody has used a database since the start, so no catalog is known")
	}
	var rows [][]any
	add := func(statement string, e route.Explanation) {
		rows = append(rows, []any{statement, database, e.Target, e.Reason, e.Subject, e.Hint, e.Sentence})
	}
	e := r.Explain([]byte(sql))
	add("all", e)
	for i, one := range e.Statements {
		add(strconv.Itoa(i+1), one)
	}
	return renderTable("statement database target reason subject hint why", rows, "EXPLAIN"), nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
