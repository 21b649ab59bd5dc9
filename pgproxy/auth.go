package pgproxy

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/xdg-go/scram"

	"fournines/internal/pgwire"
)

// scramIterations is PostgreSQL's own default.
const scramIterations = 4096

// maxSASL bounds a SASL message from a client.
const maxSASL = 4 << 10

// account is one role that may log in.
type account struct {
	password string
	verifier scram.StoredCredentials
}

func newAccount(user, password string) (account, error) {
	salt := make([]byte, 16)
	if _, err := rand.Read(salt); err != nil {
		return account{}, err
	}
	// PostgreSQL uses the raw password where SASLprep refuses it; so do we.
	c, err := scram.SHA256.NewClient("", password, "")
	if err != nil {
		if c, err = scram.SHA256.NewClientUnprepped("", password, ""); err != nil {
			return account{}, fmt.Errorf("user %s: %w", user, err)
		}
	}
	v, err := c.GetStoredCredentialsWithError(scram.KeyFactors{Salt: string(salt), Iters: scramIterations})
	if err != nil {
		return account{}, fmt.Errorf("user %s: %w", user, err)
	}
	return account{password: password, verifier: v}, nil
}

// mockVerifier is what an unknown user is checked against: the salt is stable
// for a name, as it would be for a real one, and nothing matches the keys.
func mockVerifier(secret []byte, user string) scram.StoredCredentials {
	derive := func(what string) []byte {
		m := hmac.New(sha256.New, secret)
		m.Write([]byte(what))
		m.Write([]byte(user))
		return m.Sum(nil)
	}
	return scram.StoredCredentials{
		KeyFactors: scram.KeyFactors{Salt: string(derive("salt")[:16]), Iters: scramIterations},
		StoredKey:  derive("stored"), ServerKey: derive("server"),
	}
}

// authenticate runs SCRAM-SHA-256 with the client. binding is nil without TLS.
func (s *session) authenticate(verifier scram.StoredCredentials, binding []byte) error {
	mechanisms := "SCRAM-SHA-256\x00\x00"
	if binding != nil {
		mechanisms = "SCRAM-SHA-256-PLUS\x00" + mechanisms
	}
	if err := s.send(pgwire.AppendAuth(nil, 10, []byte(mechanisms))); err != nil {
		return err
	}
	body, err := s.readSASL()
	if err != nil {
		return err
	}
	mechanism, rest, ok := pgwire.CString(body)
	if !ok || len(rest) < 4 {
		return fmt.Errorf("%w: SASL initial response", pgwire.ErrProtocol)
	}
	server, err := scram.SHA256.NewServer(func(string) (scram.StoredCredentials, error) { return verifier, nil })
	if err != nil {
		return err
	}
	conv := server.NewConversation()
	switch {
	case string(mechanism) == "SCRAM-SHA-256-PLUS" && binding != nil,
		string(mechanism) == "SCRAM-SHA-256" && binding != nil:
		cb := scram.ChannelBinding{Type: scram.ChannelBindingTLSServerEndpoint, Data: binding}
		conv = server.NewConversationWithChannelBinding(cb)
	case string(mechanism) == "SCRAM-SHA-256":
	default:
		return fmt.Errorf("%w: unknown SASL mechanism", pgwire.ErrProtocol)
	}
	answer, err := conv.Step(string(rest[4:]))
	if err != nil {
		return fmt.Errorf("%w: %w", errWrongPassword, err)
	}
	if err := s.send(pgwire.AppendAuth(nil, 11, []byte(answer))); err != nil {
		return err
	}
	if body, err = s.readSASL(); err != nil {
		return err
	}
	answer, err = conv.Step(string(body))
	if err != nil || !conv.Valid() {
		return errWrongPassword
	}
	s.hello = pgwire.AppendAuth(s.hello, 12, []byte(answer))
	return nil
}

var errWrongPassword = errors.New("password authentication failed")

func (s *session) readSASL() ([]byte, error) {
	typ, size, err := pgwire.PeekHeader(s.br)
	if err != nil {
		return nil, err
	}
	if typ != 'p' || size > maxSASL {
		return nil, fmt.Errorf("%w: expected a SASL response", pgwire.ErrProtocol)
	}
	body, err := pgwire.ReadBody(nil, s.br, size)
	return bytes.Clone(body), err
}
