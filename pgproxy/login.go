package pgproxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"runtime/debug"
	"sort"
	"strings"
	"time"

	"fournines/internal/pgwire"
	"fournines/pgproxy/route"
)

// maxGreetings bounds the cache of reported parameters.
const maxGreetings = 1000

// serve handles one client connection from its first byte.
func (p *Proxy) serve(conn net.Conn) {
	s := &session{
		p: p, conn: conn, br: clientReaders.Get().(*bufio.Reader), status: 'I',
		stmts: make(map[string]*statement), portals: make(map[string]*statement),
	}
	s.input.conn = conn
	s.br.Reset(&s.input)
	s.fillInput = s.fill
	s.stays = func() error {
		if hungUp(s.conn) {
			return errBye
		}
		return nil
	}
	s.quiet.L = &s.mu
	s.ctx, s.cancel = context.WithCancelCause(p.hard)
	s.run(func() error {
		err := s.login()
		if err == nil && s.console {
			return s.relayConsole()
		} else if err == nil {
			return s.relay()
		}
		return err
	})
}

// run lets work handle the client, and says goodbye unless it was parked.
func (s *session) run(work func() error) {
	p := s.p
	parked := false
	defer func() {
		if !parked {
			s.cancel(nil)
			_ = s.conn.Close()
			p.clients.Add(-1)
		}
	}()
	defer func() {
		if r := recover(); r != nil {
			p.metrics.panics.Add(1)
			p.log.Error("panic in a client's session", "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			s.leave()
		}
	}()
	err := work()
	if parked = errors.Is(err, errParked); parked {
		return
	}
	p.unregister(s)
	s.leave()
	if err == nil || isGone(err) {
		return
	}
	ce := toClient(err)
	if ce.cause != nil {
		p.log.Info("session ended", "client", s.conn.RemoteAddr().String(), "user", s.user, "err", err)
	}
	p.metrics.error(ce.Code)
	e := ce.ErrorResponse
	e.Severity = "FATAL"
	_ = s.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_ = s.send(pgwire.AppendError(nil, &e))
}

// login brings the client to its first ReadyForQuery.
func (s *session) login() error {
	p := s.p
	l := p.live.Load()
	_ = s.conn.SetDeadline(time.Now().Add(l.cfg.Limits.LoginTimeout))
	start, err := s.firstPackets(l)
	if err != nil {
		return err
	}
	_, encrypted := s.conn.(*tls.Conn)
	switch {
	case start.Major != 3:
		return newError("FATAL", codeUnsupported, "protocol %d.%d is not supported; use 3.0", start.Major, start.Minor)
	case l.tls != nil && l.cfg.TLS.Required && !encrypted:
		return newError("FATAL", codeNoAuthorisation, "TLS is required")
	case p.clients.Load() > int64(l.cfg.Pool.MaxClientConnections):
		return newError("FATAL", codeTooMany, "too many clients already")
	}
	if start.Minor > 0 || len(start.Unsupported) > 0 {
		sort.Strings(start.Unsupported)
		if err := s.send(pgwire.AppendNegotiate(nil, 0, start.Unsupported)); err != nil {
			return err
		}
	}
	s.user, s.database = start.Params["user"], start.Params["database"]
	if s.user == "" {
		return newError("FATAL", codeNoAuthorisation, "no user name in the startup packet")
	}
	if s.database == "" {
		s.database = s.user
	}
	if r := start.Params["replication"]; r != "" && r != "false" && r != "off" && r != "0" && r != "no" {
		return newError("FATAL", codeUnsupported, "replication connections do not go through the proxy; connect to the server itself")
	}
	s.began = time.Now()
	s.console = len(l.console) > 0 && s.database == l.cfg.Console.Database
	accounts := l.accounts
	if s.console {
		accounts = l.console
	}
	acc, known := accounts[s.user]
	verifier := acc.verifier
	if !known {
		verifier = mockVerifier(p.secret, s.user)
	}
	var binding []byte
	if encrypted {
		binding = l.tls.endpoint
	}
	addr, limits := guessAddr(s.conn.RemoteAddr()), l.cfg.Limits
	wait, ok := p.guesses.admit(addr, s.user, limits, limits.LoginTimeout, time.Now())
	if !ok {
		p.metrics.authRefused.Add(1)
		return newError("FATAL", codeTooMany, "too many failed logins from this address; try again later")
	}
	s.rest(wait)
	_ = s.conn.SetDeadline(time.Now().Add(limits.LoginTimeout))
	err = s.authenticate(verifier, binding)
	if err == nil && !known {
		err = errWrongPassword
	}
	if errors.Is(err, errWrongPassword) {
		p.metrics.authFailures.Add(1)
		s.rest(p.guesses.failed(addr, limits, time.Now()))
		_ = s.conn.SetDeadline(time.Now().Add(limits.LoginTimeout))
		e := newError("FATAL", codeWrongPassword, "password authentication failed for user %q", s.user)
		e.cause = err
		return e
	}
	if err != nil {
		return err
	}
	p.guesses.succeeded(addr, s.user, time.Now())
	if s.startup, err = startupSettings(start.Params); err != nil {
		return newError("FATAL", codeInvalidValue, "%s", err.Error())
	}
	if s.startup.hint == route.HintInvalid {
		return newError("FATAL", codeInvalidValue, "invalid value for %s; use auto, primary or standby", route.RouteSetting)
	}
	s.params, s.hint = s.startup, s.startup.hint
	if v, ok := s.startup.values["standard_conforming_strings"]; ok && !strings.EqualFold(v, "on") {
		s.foreign = true
	}
	if s.console {
		_ = s.conn.SetDeadline(time.Time{})
		if !p.register(s) {
			return newError("FATAL", codeShutdown, "the proxy is shutting down")
		}
		return s.greetConsole()
	}
	s.pool, s.waited = p.poolFor(s.database, s.user), p.metrics.waited(s.database)
	if p.mode != ModeSession { // else nothing is placed, and nothing sent again
		s.router = p.routerFor(s.database, s.user)
	}
	_ = s.conn.SetDeadline(time.Time{})
	if !p.register(s) {
		return newError("FATAL", codeShutdown, "the proxy is shutting down")
	}
	if err := s.greet(); err != nil {
		return err
	}
	return nil
}

// rest lets time pass, unless the proxy ends.
func (s *session) rest(d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.ctx.Done():
	}
}

// firstPackets answers requests for encryption and cancellation, and returns
// the startup message.
func (s *session) firstPackets(l *live) (*pgwire.Startup, error) {
	for asked := 0; asked < 3; asked++ {
		start, err := pgwire.ReadStartup(s.br)
		if err != nil {
			return nil, err
		}
		switch start.Kind {
		case pgwire.StartupMessage:
			return start, nil
		case pgwire.CancelRequest:
			s.p.cancelRequest(start.PID, start.Key)
			return nil, errBye
		case pgwire.GSSENCRequest:
			err = s.send([]byte{'N'})
		case pgwire.SSLRequest:
			_, encrypted := s.conn.(*tls.Conn)
			if l.tls == nil || encrypted {
				err = s.send([]byte{'N'})
				break
			}
			if s.br.Buffered() > 0 {
				// What came unencrypted must not be taken for encrypted.
				return nil, fmt.Errorf("%w: bytes before the TLS handshake", pgwire.ErrProtocol)
			}
			if err = s.send([]byte{'S'}); err != nil {
				break
			}
			tc := tls.Server(s.conn, l.tls.config)
			if err = tc.Handshake(); err != nil {
				return nil, errBye
			}
			s.conn, s.input.conn = tc, tc
			s.br.Reset(&s.input)
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: too many requests before startup", pgwire.ErrProtocol)
}

// greet sends what follows a successful authentication. The reported
// parameters come from a server on which the client's startup parameters were
// set, once per combination; so a wrong one, or a database that does not
// exist, is found here as it would be without the proxy.
func (s *session) greet() error {
	p := s.p
	cacheKey := s.database + "\x00" + s.user + "\x00" + s.startup.key
	p.mu.Lock()
	reported := p.greeting[cacheKey]
	p.mu.Unlock()
	if reported == nil {
		reported = s.assumedParameters()
	}
	if reported == nil {
		var err error
		if reported, err = s.askParameters(); err != nil {
			return err
		}
		p.mu.Lock()
		if len(p.greeting) >= maxGreetings {
			clear(p.greeting)
		}
		p.greeting[cacheKey] = reported
		p.mu.Unlock()
	} else {
		s.mu.Lock()
		s.reported = reported
		s.mu.Unlock()
	}
	out := pgwire.AppendAuth(s.hello, 0, nil)
	s.hello = nil
	names := make([]string, 0, len(reported))
	for name := range reported {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		out = pgwire.AppendParameterStatus(out, name, reported[name])
	}
	out = pgwire.AppendKeyData(out, s.pid, s.key[:])
	return s.send(pgwire.AppendReady(out, 'I'))
}

// assumedParameters lets a client log in while there is no primary, so that it
// waits with its first statement and not with its login, for which drivers have
// less patience: what another server of the cluster reports, as the primary
// would. It is nil while there is a primary to ask, or nobody at all.
func (s *session) assumedParameters() map[string]string {
	v := s.p.tracker.View()
	if v.Primary != nil {
		return nil
	}
	for _, server := range v.Servers {
		if !server.Up || len(server.Parameters) == 0 {
			continue
		}
		out := maps.Clone(server.Parameters)
		out["in_hot_standby"], out["is_superuser"], out["session_authorization"] = "off", "off", s.user
		out["application_name"] = ""
		for name := range out {
			if value, ok := s.startup.values[strings.ToLower(name)]; ok {
				out[name] = value
			}
		}
		return out
	}
	return nil
}

// askParameters sets the startup parameters on a server and returns what it
// reports.
func (s *session) askParameters() (map[string]string, error) {
	srv, err := s.p.acquire(s)
	if err != nil {
		return nil, err
	}
	sql := changeSQL(srv.applied, s.params)
	s.mu.Lock()
	srv.mu.Lock()
	if srv.dead {
		srv.mu.Unlock()
		s.mu.Unlock()
		return nil, newError("FATAL", codeNoPrimary, "the server was lost during login")
	}
	srv.sess.Store(s)
	srv.mu.Unlock()
	s.srv = srv
	srv.applied = s.params
	srv.unnamed = nil
	s.internal.Store(true)
	s.push(op{kind: opInternal})
	s.mu.Unlock()
	_ = srv.query(sql) // a broken connection is told by its reading goroutine
	s.mu.Lock()
	s.waitQuiet()
	reported := s.reported
	s.mu.Unlock()
	if e := s.internalErr.Swap(nil); e != nil {
		e.Severity = "FATAL"
		return nil, &clientError{ErrorResponse: *e}
	}
	if reported == nil {
		return nil, errBye // serverLost has said why
	}
	s.mu.Lock()
	if s.p.mode == ModeSession && s.srv != nil {
		s.pinned = route.PinSessionState
	}
	s.mu.Unlock()
	return reported, nil
}
