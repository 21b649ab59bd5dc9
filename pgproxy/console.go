package pgproxy

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"fournines/internal/pgwire"
)

// Console is the admin console: a database that exists in the proxy only, for
// commands like PgBouncer's (SHOW POOLS, PAUSE ...).
type Console struct {
	// Users may log in to it, and to nothing else. Without any there is no console.
	Users []User `yaml:"users"`
	// Database is its name; a real database of that name cannot be reached
	// while there is a console. Default pgproxy.
	Database string `yaml:"database"`
}

// maxConsoleCommand bounds the text of one command.
const maxConsoleCommand = 64 << 10

// greetConsole sends what follows a successful login. The version is one that
// psql takes for its own, so that it does not warn.
func (s *session) greetConsole() error {
	out := pgwire.AppendAuth(s.hello, 0, nil)
	s.hello = nil
	for _, p := range [][2]string{
		{"server_version", "15.0 (pgproxy " + s.p.opts.Version + ")"}, {"server_encoding", "UTF8"}, {"client_encoding", "UTF8"},
		{"DateStyle", "ISO, MDY"}, {"TimeZone", "UTC"}, {"integer_datetimes", "on"}, {"standard_conforming_strings", "on"},
	} {
		out = pgwire.AppendParameterStatus(out, p[0], p[1])
	}
	out = pgwire.AppendKeyData(out, s.pid, s.key[:])
	return s.send(pgwire.AppendReady(out, 'I'))
}

// relayConsole answers commands until the client leaves or must leave.
func (s *session) relayConsole() error {
	skip := false // discard extended messages up to the next Sync
	for {
		typ, size, err := pgwire.PeekHeader(s.br)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if end := s.drained(); end != nil {
				return end
			}
			continue
		}
		if err == nil {
			err = pgwire.CheckClientSize(typ, size)
		}
		if err != nil {
			return err
		}
		if size > maxConsoleCommand {
			return newError("FATAL", codeLimit, "command of %d bytes; the console takes at most %d", size, maxConsoleCommand)
		}
		body, err := pgwire.ReadBody(nil, s.br, size)
		if err != nil {
			return err
		}
		var out []byte
		switch typ {
		case 'X':
			return errBye
		case 'Q':
			text, _, ok := pgwire.CString(body)
			if !ok {
				return fmt.Errorf("%w: query without end", pgwire.ErrProtocol)
			}
			out = pgwire.AppendReady(s.p.consoleCommand(s, string(text)), 'I')
		case 'S':
			skip = false
			out = pgwire.AppendReady(nil, 'I')
		default:
			if skip {
				continue
			}
			skip = true
			e := newError("ERROR", codeUnsupported, "the console speaks the simple query protocol only")
			e.Hint = "Turn prepared statements off: psql as it is, pgx with default_query_exec_mode=simple_protocol, JDBC with preferQueryMode=simple."
			out = pgwire.AppendError(nil, &e.ErrorResponse)
		}
		if err := s.send(out); err != nil {
			return err
		}
	}
}

// consoleCommand runs one command and returns its answer, without ReadyForQuery.
func (p *Proxy) consoleCommand(s *session, text string) []byte {
	words, err := consoleWords(text)
	if err == nil && len(words) == 0 {
		return pgwire.Append(nil, 'I')
	}
	var out []byte
	if err == nil {
		p.log.Info("console", "user", s.user, "client", s.conn.RemoteAddr().String(), "command", text)
		out, err = p.consoleRun(words)
	}
	if err != nil {
		e := toConsole(err)
		return pgwire.AppendError(nil, &e.ErrorResponse)
	}
	return out
}

// toConsole translates an error; whoever is at the console may know it all.
func toConsole(err error) *clientError {
	var ce *clientError
	switch {
	case errors.As(err, &ce):
		return ce
	case errors.Is(err, ErrPaused), errors.Is(err, ErrNotPaused), errors.Is(err, ErrStillRunning):
		return newError("ERROR", "55000", "%v", err)
	}
	return newError("ERROR", "F0000", "%v", err) // config_file_error
}

func errSyntax(format string, args ...any) error {
	e := newError("ERROR", "42601", format, args...)
	e.Hint = "SHOW HELP lists the commands."
	return e
}

func (p *Proxy) consoleRun(words []consoleWord) ([]byte, error) {
	rest := words[1:]
	switch verb := words[0].keyword(); verb {
	case "show":
		if len(rest) != 1 {
			return nil, errSyntax("SHOW takes one name")
		}
		for _, t := range consoleTables() {
			if t.name == rest[0].keyword() {
				return t.render(p), nil
			}
		}
		return nil, errSyntax("unknown command: SHOW %s", rest[0].text)
	case "pause":
		o := PauseOptions{Wait: DefaultPauseWait, Lease: DefaultPauseLease}
		if n := len(rest); n >= 2 && rest[n-2].keyword() == "for" {
			var err error
			if o.Lease, err = time.ParseDuration(rest[n-1].text); err != nil {
				return nil, errSyntax("PAUSE ... FOR takes a time like 30s or 2m")
			}
			rest = rest[:n-2]
		}
		var err error
		if o.Database, err = oneDatabase(verb, rest); err != nil {
			return nil, err
		}
		if err := p.Pause(p.hard, o); err != nil {
			return nil, err
		}
		notice := pgwire.ErrorResponse{Severity: "NOTICE", Code: "00000", Message: fmt.Sprintf("new transactions are held; without RESUME they go on by themselves after %v", o.Lease)}
		return pgwire.AppendComplete(pgwire.AppendNotice(nil, &notice), "PAUSE"), nil
	case "resume":
		database, err := oneDatabase(verb, rest)
		if err != nil {
			return nil, err
		}
		if err := p.Resume(database); err != nil {
			return nil, err
		}
		return pgwire.AppendComplete(nil, "RESUME"), nil
	case "reload":
		if len(rest) != 0 {
			return nil, errSyntax("RELOAD takes no argument")
		}
		if err := p.ReloadFile(); err != nil {
			return nil, err
		}
		return pgwire.AppendComplete(nil, "RELOAD"), nil
	case "explain":
		database := ""
		if len(rest) == 4 && rest[2].keyword() == "in" && !rest[3].literal {
			database, rest = rest[3].name(), rest[:2]
		}
		if len(rest) != 2 || rest[0].keyword() != "route" || !rest[1].literal {
			return nil, errSyntax("unknown command: EXPLAIN ROUTE 'statement' [IN database] is the form")
		}
		return p.explainRoute(rest[1].text, database)
	default:
		return nil, errSyntax("unknown command: %s", words[0].text)
	}
}

// oneDatabase reads the optional name of a database.
func oneDatabase(verb string, rest []consoleWord) (string, error) {
	switch {
	case len(rest) == 0:
		return "", nil
	case len(rest) == 1 && !rest[0].literal:
		return rest[0].name(), nil
	}
	return "", errSyntax("%s takes at most the name of one database", strings.ToUpper(verb))
}

// consoleWord is a part of a command.
type consoleWord struct {
	text    string
	quoted  bool // "identifier"
	literal bool // 'string'
}

// keyword is the word in lower case, or "" when it was quoted.
func (w consoleWord) keyword() string {
	if w.quoted || w.literal {
		return ""
	}
	return strings.ToLower(w.text)
}

// name is the word as an identifier.
func (w consoleWord) name() string {
	if w.quoted {
		return w.text
	}
	return strings.ToLower(w.text)
}

// consoleWords splits a command. Quotes are doubled inside of quotes, as in
// SQL; a semicolon may end the command, and nothing may follow it.
func consoleWords(text string) ([]consoleWord, error) {
	var words []consoleWord
	for {
		text = strings.TrimLeft(text, " \t\r\n\f\v")
		switch {
		case text == "":
			return words, nil
		case strings.HasPrefix(text, "--"):
			_, text, _ = strings.Cut(text, "\n")
		case text[0] == ';':
			if rest := strings.Trim(text, "; \t\r\n\f\v"); rest != "" {
				return nil, errSyntax("one command at a time")
			}
			return words, nil
		case text[0] == '\'' || text[0] == '"':
			word, rest, ok := cutQuoted(text)
			if !ok {
				return nil, errSyntax("a quote is not closed")
			}
			words = append(words, consoleWord{text: word, quoted: text[0] == '"', literal: text[0] == '\''})
			text = rest
		default:
			n := strings.IndexAny(text, " \t\r\n\f\v;'\"")
			if n < 0 {
				n = len(text)
			}
			words = append(words, consoleWord{text: text[:n]})
			text = text[n:]
		}
	}
}

// cutQuoted takes the quoted word that text begins with.
func cutQuoted(text string) (word, rest string, ok bool) {
	quote := text[0]
	var b strings.Builder
	for i := 1; i < len(text); i++ {
		if text[i] != quote {
			b.WriteByte(text[i])
			continue
		}
		if i+1 < len(text) && text[i+1] == quote {
			b.WriteByte(quote)
			i++
			continue
		}
		return b.String(), text[i+1:], true
	}
	return "", "", false
}
