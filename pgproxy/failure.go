package pgproxy

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"fournines/internal/pgwire"
	"fournines/pgproxy/pool"
)

// All SQLSTATEs that the proxy itself answers with. DESIGN.md gives reasons.
const (
	codeProtocol          = "08P01" // bytes that no correct client sends
	codeOutcomeUnknown    = "08007" // sent, not answered, may have been committed
	codeRolledBack        = "40001" // certainly rolled back: run the transaction again
	codeAborted           = "25P02" // statement in a transaction that already failed
	codeTooMany           = "53300" // no room: clients, queue
	codeLimit             = "54000" // statement or statement count over a limit
	codeCancelled         = "57014" // by the client, or by statement_timeout
	codeShutdown          = "57P01" // proxy stops, or session state was lost with its server
	codeNoPrimary         = "57P03" // no writable primary in time; nothing was sent
	codeUnsupported       = "0A000"
	codeInvalidValue      = "22023" // startup parameter, or fournines.route
	codeWrongPassword     = "28P01"
	codeNoAuthorisation   = "28000"
	codeInternal          = "XX000"
	codeUndefinedDatabase = "3D000" // of the console
)

// codeDiskFull is what a server says that has no room to write.
const codeDiskFull = "53100"

// clientError is an error that a client may see.
type clientError struct {
	pgwire.ErrorResponse
	// cause is for the log.
	cause error
}

func (e *clientError) Error() string {
	if e.cause != nil {
		return fmt.Sprintf("%s (SQLSTATE %s): %v", e.Message, e.Code, e.cause)
	}
	return fmt.Sprintf("%s (SQLSTATE %s)", e.Message, e.Code)
}

func (e *clientError) Unwrap() error { return e.cause }

func newError(severity, code, format string, args ...any) *clientError {
	return &clientError{ErrorResponse: pgwire.ErrorResponse{Severity: severity, Code: code, Message: fmt.Sprintf(format, args...)}}
}

// toClient translates any error into what a client is told. Internal text
// stays in the log.
func toClient(err error) *clientError {
	var ce *clientError
	if errors.As(err, &ce) {
		return ce
	}
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		return &clientError{ErrorResponse: pgwire.ErrorResponse{Severity: "FATAL", Code: pe.Code, Message: pe.Message, Detail: pe.Detail, Hint: pe.Hint}}
	}
	switch {
	case errors.Is(err, pool.ErrFull):
		return newError("ERROR", codeTooMany, "too many clients wait for a server connection")
	case errors.Is(err, pool.ErrTimeout):
		return newError("ERROR", codeTooMany, "no server connection became free in time; nothing was executed")
	case errors.Is(err, pgwire.ErrProtocol):
		e := newError("FATAL", codeProtocol, "invalid message")
		e.cause = err
		return e
	}
	e := newError("FATAL", codeInternal, "internal error of the proxy")
	e.cause = err
	return e
}

// lostError says why a server connection ended.
type lostError struct {
	// fatal is the server's last word, if it said one.
	fatal *pgwire.ErrorResponse
	err   error
	// ours: this proxy has closed it, because its server is no longer what it was.
	ours bool
}

func (e *lostError) Error() string {
	if e.fatal != nil {
		return fmt.Sprintf("server ended the session: %s (SQLSTATE %s)", e.fatal.Message, e.fatal.Code)
	}
	return fmt.Sprintf("server connection lost: %v", e.err)
}

func (e *lostError) Unwrap() error { return e.err }

// rolledBack reports whether the server's last word proves that the statement
// it was working on, or had not begun, left no trace. On 57P01 PostgreSQL
// aborts the transaction; the one exception (a commit that waits for its
// synchronous standby) is announced by a warning, see server.commitDoubt.
func (e *lostError) rolledBack() bool { return e.fatal != nil && e.fatal.Code == "57P01" }

// serverRestarting reports whether a FATAL code means that the server goes
// away, so that the client need not go with it.
func serverRestarting(code string) bool {
	return code == "57P01" || code == "57P02" || code == "57P03" || code == "57P05"
}
