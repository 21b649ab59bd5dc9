package redisproxy

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"strconv"
	"strings"
	"time"

	"fournines/internal/resp"
)

const errAuth = "WRONGPASS invalid username-password pair or user is disabled."

// check compares a password in constant time; an unknown user costs the same.
func (p *Proxy) check(user, password []byte) (string, bool) {
	name := string(user)
	if name == "default" || name == "" {
		name = p.cfg.DefaultUser
	}
	want, known := p.users[name]
	got := sha256.Sum256(password)
	return name, subtle.ConstantTimeCompare(got[:], want[:]) == 1 && known
}

func (s *session) auth(o *op) {
	args := o.cmd.Args
	if len(args) > 3 {
		o.local = resp.AppendError(o.local, "ERR syntax error")
		return
	}
	user := []byte("default")
	if len(args) == 3 {
		user = args[1]
	}
	name, ok := s.p.check(user, args[len(args)-1])
	if !ok {
		s.p.m.rejected.WithLabelValues("password").Inc()
		o.local = resp.AppendError(o.local, errAuth)
		return
	}
	s.authenticated(name)
	o.local = append(o.local, "+OK\r\n"...)
}

func (s *session) hello(o *op) {
	args := o.cmd.Args
	version, user, name := s.version, s.user, ""
	fail := func(msg string) { o.local = resp.AppendError(o.local, msg) }
	if len(args) > 1 {
		n, err := strconv.Atoi(string(args[1]))
		if err != nil {
			fail("ERR Protocol version is not an integer or out of range")
			return
		}
		if n != 2 && n != 3 {
			fail("NOPROTO unsupported protocol version")
			return
		}
		version = n
	}
	authed, named := s.authed, false
	for i := 2; i < len(args); i++ {
		switch strings.ToLower(string(args[i])) {
		case "auth":
			if i+2 >= len(args) {
				fail("ERR Syntax error in HELLO option 'auth'")
				return
			}
			var ok bool
			if user, ok = s.p.check(args[i+1], args[i+2]); !ok {
				s.p.m.rejected.WithLabelValues("password").Inc()
				fail(errAuth)
				return
			}
			authed = true
			i += 2
		case "setname":
			if i+1 >= len(args) {
				fail("ERR Syntax error in HELLO option 'setname'")
				return
			}
			name, named = string(args[i+1]), true
			i++
		default:
			fail("ERR Syntax error in HELLO option '" + string(args[i]) + "'")
			return
		}
	}
	if !authed {
		fail("NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time")
		return
	}
	if version != s.version && s.watch != nil {
		fail("ERR fournines: the protocol version cannot change while keys are watched")
		return
	}
	if named && !validName(name) {
		fail(errName)
		return
	}
	if !s.authed || user != s.user {
		s.authenticated(user)
	}
	if named {
		s.name.Store(&name)
	}
	s.version = version
	o.local = resp.AppendMap(o.local, 7, version)
	pair := func(k, v string) {
		o.local = resp.AppendBulkString(o.local, k)
		o.local = resp.AppendBulkString(o.local, v)
	}
	pair("server", "redis")
	pair("version", s.p.redisVersion())
	o.local = resp.AppendBulkString(o.local, "proto")
	o.local = resp.AppendInt(o.local, int64(version))
	o.local = resp.AppendBulkString(o.local, "id")
	o.local = resp.AppendInt(o.local, int64(s.id))
	pair("mode", "standalone")
	pair("role", "master")
	o.local = resp.AppendBulkString(o.local, "modules")
	o.local = resp.AppendArray(o.local, 0)
}

func (s *session) resetAll(o *op) {
	s.tx = nil
	s.dropWatch(true)
	s.p.hub.leave(s)
	s.db, s.version, s.authed, s.user = &s.p.dbs[0], 2, false, ""
	s.rd.SetLimits(strangerLimits)
	s.name.Store(nil)
	o.local = append(o.local, "+RESET\r\n"...)
}

const errName = "ERR Client names cannot contain spaces, newlines or special characters."

func validName(name string) bool {
	for i := range len(name) {
		if name[i] < '!' || name[i] > '~' {
			return false
		}
	}
	return true
}

func (s *session) client(o *op) {
	args := o.cmd.Args
	ok := func() { o.local = append(o.local, "+OK\r\n"...) }
	switch sub := strings.ToLower(string(args[1])); sub {
	case "id":
		o.local = resp.AppendInt(o.local, int64(s.id))
	case "getname":
		if n := s.name.Load(); n != nil && *n != "" {
			o.local = resp.AppendBulkString(o.local, *n)
		} else {
			o.local = resp.AppendNull(o.local, s.version)
		}
	case "setname":
		name := string(args[2])
		if !validName(name) {
			o.local = resp.AppendError(o.local, errName)
			return
		}
		s.name.Store(&name)
		ok()
	case "setinfo", "no-evict", "no-touch":
		ok()
	case "getredir":
		o.local = resp.AppendInt(o.local, -1)
	case "info":
		o.local = resp.AppendBulkString(o.local, s.describe()+"\n")
	case "list":
		var b strings.Builder
		s.p.mu.Lock()
		for _, other := range s.p.sessions {
			b.WriteString(other.describe() + "\n")
		}
		s.p.mu.Unlock()
		o.local = resp.AppendBulkString(o.local, b.String())
	case "reply":
		if len(args) == 3 && strings.EqualFold(string(args[2]), "on") {
			ok()
			return
		}
		o.local = resp.AppendError(o.local, refusal("client reply", "connections are shared, so every command is answered"))
	default:
		o.local = resp.AppendError(o.local, unknownSubcommand(args))
	}
}

// describe is the client's line in CLIENT LIST: only what other goroutines
// may read.
func (s *session) describe() string {
	name := ""
	if n := s.name.Load(); n != nil {
		name = *n
	}
	now := time.Now()
	return fmt.Sprintf("id=%d addr=%s laddr=%s name=%s age=%d idle=%d", s.id, s.conn.RemoteAddr(), s.conn.LocalAddr(),
		name, int(now.Sub(s.since).Seconds()), now.Unix()-s.last.Load())
}

// acl is ACL WHOAMI; dispatch refuses the rest.
func (s *session) acl(o *op) {
	if o.info.Name != "acl|whoami" {
		o.local = resp.AppendError(o.local, unknownSubcommand(o.cmd.Args))
		return
	}
	o.local = resp.AppendBulkString(o.local, s.user)
}
