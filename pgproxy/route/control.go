package route

import (
	"bytes"
	"strings"
)

// controlReasons says for the first word of a statement why the primary must
// run it. What is neither here nor parsed is ReasonUtility.
var controlReasons = map[string]Reason{
	"insert": ReasonWrite, "update": ReasonWrite, "delete": ReasonWrite, "merge": ReasonWrite, "truncate": ReasonWrite,
	"refresh": ReasonWrite,
	"create":  ReasonDDL, "alter": ReasonDDL, "drop": ReasonDDL, "comment": ReasonDDL, "grant": ReasonDDL, "revoke": ReasonDDL,
	"import": ReasonDDL, "reindex": ReasonDDL, "cluster": ReasonDDL, "security": ReasonDDL,
	"lock": ReasonLock,
	"set":  ReasonSession, "reset": ReasonSession, "discard": ReasonSession, "prepare": ReasonSession, "execute": ReasonSession,
	"deallocate": ReasonSession, "declare": ReasonSession, "fetch": ReasonSession, "move": ReasonSession, "close": ReasonSession,
	"listen": ReasonSession, "unlisten": ReasonSession, "load": ReasonSession, "savepoint": ReasonSession, "release": ReasonSession,
	"rollback": ReasonSession, "abort": ReasonSession, "commit": ReasonSession, "end": ReasonSession, // those that are not plain
}

// control decides about a text that is decided by its first words, or is empty.
func control(f Facts, word, sql []byte) verdict {
	switch f.Kind {
	case Empty:
		return verdict{target: Any, reason: ReasonControl}
	case Begin:
		if f.Isolation.Snapshot() {
			return verdict{reason: ReasonIsolation, subject: f.Isolation.String()}
		}
		return verdict{target: Any, reason: ReasonControl}
	case Commit, Rollback:
		return verdict{target: Any, reason: ReasonControl}
	case Many:
		return verdict{reason: ReasonMany, subject: bounded(strings.ToLower(string(word)))}
	case SetTransaction:
		if f.Isolation.Snapshot() {
			return verdict{reason: ReasonIsolation, subject: f.Isolation.String()}
		}
	}
	name := strings.ToLower(string(word))
	if name == "show" {
		return show(sql)
	}
	reason, ok := controlReasons[name]
	if !ok {
		reason = ReasonUtility
	}
	return verdict{reason: reason, subject: bounded(name)}
}

// sessionSettings are those that the session has set itself or that servers of
// one cluster share, so that SHOW gives one answer on all.
var sessionSettings = map[string]bool{
	"standard_conforming_strings": true, "client_encoding": true, "server_encoding": true, "server_version": true, "server_version_num": true,
	"search_path": true, "timezone": true, "datestyle": true, "intervalstyle": true, "application_name": true, "extra_float_digits": true,
	"bytea_output": true, "statement_timeout": true, "lock_timeout": true, "client_min_messages": true, "max_identifier_length": true,
	"transaction_isolation": true, "default_transaction_isolation": true, "integer_datetimes": true, "lc_collate": true, "lc_ctype": true,
}

// TakesSnapshot reports that a statement reads in a snapshot, which fixes the
// isolation level of its transaction. SHOW and an empty text do not; of others it
// is assumed.
func TakesSnapshot(sql []byte) bool {
	s := scanner{sql: sql}
	kind, text := s.next()
	return kind != 0 && !bytes.EqualFold(text, []byte("show"))
}

// Queries reports that a statement certainly reads in a snapshot: it begins with
// the word of a query or of a change of rows.
func Queries(sql []byte) bool {
	s := scanner{sql: sql}
	kind, text := s.next()
	if kind != 'w' {
		return false
	}
	switch string(text) {
	case "select", "insert", "update", "delete", "merge", "with", "values", "table":
		return true
	}
	return false
}

// show decides about SHOW.
func show(sql []byte) verdict {
	s := scanner{sql: sql}
	s.next()
	kind, text := s.next()
	name := strings.ToLower(string(text))
	kind2, text := s.next()
	if kind == 'w' && kind2 == 'w' {
		switch name + " " + string(text) {
		case "time zone":
			name = "timezone"
		case "transaction isolation":
			name = "transaction_isolation"
		}
	}
	// A name with a dot belongs to an extension or to the session.
	if sessionSettings[name] && kind2 != '.' {
		return verdict{target: Any, reason: ReasonNoTable}
	}
	return verdict{reason: ReasonServerState, subject: bounded(name)}
}
