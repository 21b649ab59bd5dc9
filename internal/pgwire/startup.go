package pgwire

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"strings"
)

// MaxStartup is the largest startup packet, length field included.
const MaxStartup = 10 << 10

// maxStartupParams bounds the number of parameters; PostgreSQL clients send
// fewer than ten.
const maxStartupParams = 128

// StartupKind says which of the first packets a client sent.
type StartupKind int

// The kinds of first packets.
const (
	StartupMessage StartupKind = iota
	SSLRequest
	GSSENCRequest
	CancelRequest
)

const (
	codeCancel = 80877102
	codeSSL    = 80877103
	codeGSSENC = 80877104
)

// Startup is a client's first packet, or one of the first.
type Startup struct {
	Kind StartupKind
	// Major and Minor are the protocol version of a StartupMessage.
	Major, Minor int
	// Params are the parameters of a StartupMessage, without "_pq_." options.
	Params map[string]string
	// Unsupported are the names of protocol options ("_pq_.…") that were asked for.
	Unsupported []string
	// PID and Key identify the session that a CancelRequest is about. Key has
	// 4 bytes in protocol 3.0.
	PID uint32
	Key []byte
}

// ReadStartup consumes one startup packet. It reads no byte beyond it.
func ReadStartup(r *bufio.Reader) (*Startup, error) {
	head, err := r.Peek(4)
	if err != nil {
		if len(head) > 0 {
			err = unexpected(err)
		}
		return nil, err
	}
	n := int64(binary.BigEndian.Uint32(head))
	if n < 8 || n > MaxStartup {
		return nil, fmt.Errorf("%w: startup packet of %d bytes", ErrProtocol, n)
	}
	if _, err := r.Discard(4); err != nil {
		return nil, unexpected(err)
	}
	body := make([]byte, 0, min(int(n)-4, 512))
	for len(body) < int(n)-4 {
		if r.Buffered() == 0 {
			if _, err := r.Peek(1); err != nil {
				return nil, unexpected(err)
			}
		}
		b, err := r.Peek(min(int(n)-4-len(body), r.Buffered()))
		if err != nil {
			return nil, unexpected(err)
		}
		body = append(body, b...)
		if _, err := r.Discard(len(b)); err != nil {
			return nil, unexpected(err)
		}
	}
	return ParseStartup(body)
}

// ParseStartup decodes a startup packet without its length field.
func ParseStartup(body []byte) (*Startup, error) {
	if len(body) < 4 {
		return nil, fmt.Errorf("%w: short startup packet", ErrProtocol)
	}
	code := binary.BigEndian.Uint32(body)
	body = body[4:]
	switch code {
	case codeSSL, codeGSSENC:
		if len(body) != 0 {
			return nil, fmt.Errorf("%w: encryption request with %d extra bytes", ErrProtocol, len(body))
		}
		if code == codeSSL {
			return &Startup{Kind: SSLRequest}, nil
		}
		return &Startup{Kind: GSSENCRequest}, nil
	case codeCancel:
		if len(body) < 8 || len(body) > 4+256 {
			return nil, fmt.Errorf("%w: cancel request of %d bytes", ErrProtocol, len(body))
		}
		return &Startup{Kind: CancelRequest, PID: binary.BigEndian.Uint32(body), Key: body[4:]}, nil
	}
	s := &Startup{Kind: StartupMessage, Major: int(code >> 16), Minor: int(code & 0xffff)}
	if s.Major != 3 {
		return s, nil // the rest has another form; the caller answers with an error
	}
	s.Params = make(map[string]string)
	for count := 0; ; count++ {
		name, rest, ok := CString(body)
		if !ok {
			return nil, fmt.Errorf("%w: startup packet without end", ErrProtocol)
		}
		if len(name) == 0 {
			if len(rest) != 0 {
				return nil, fmt.Errorf("%w: bytes after the end of the startup packet", ErrProtocol)
			}
			return s, nil
		}
		value, rest, ok := CString(rest)
		if !ok {
			return nil, fmt.Errorf("%w: startup parameter without value", ErrProtocol)
		}
		if count >= maxStartupParams {
			return nil, fmt.Errorf("%w: more than %d startup parameters", ErrProtocol, maxStartupParams)
		}
		if strings.HasPrefix(string(name), "_pq_.") {
			s.Unsupported = append(s.Unsupported, string(name))
		} else {
			s.Params[string(name)] = string(value)
		}
		body = rest
	}
}

// ParseOptions splits the startup parameter "options" the way PostgreSQL does
// and returns its settings in order: "-c name=value", "-cname=value" and
// "--name=value". A backslash makes the next character literal.
func ParseOptions(options string) ([][2]string, error) {
	var words []string
	var word strings.Builder
	in := false
	for i := 0; i < len(options); i++ {
		switch c := options[i]; {
		case c == '\\' && i+1 < len(options):
			i++
			word.WriteByte(options[i])
			in = true
		case c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\v' || c == '\f':
			if in {
				words = append(words, word.String())
				word.Reset()
				in = false
			}
		default:
			word.WriteByte(c)
			in = true
		}
	}
	if in {
		words = append(words, word.String())
	}
	var out [][2]string
	for i := 0; i < len(words); i++ {
		w := words[i]
		switch {
		case w == "-c" && i+1 < len(words):
			i++
			w = words[i]
		case strings.HasPrefix(w, "-c") && len(w) > 2:
			w = w[2:]
		case strings.HasPrefix(w, "--") && len(w) > 2:
			w = w[2:]
		default:
			return nil, fmt.Errorf("command-line option %q is not supported; use \"-c name=value\"", w)
		}
		name, value, ok := strings.Cut(w, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("option %q: want name=value", w)
		}
		out = append(out, [2]string{strings.ReplaceAll(name, "-", "_"), value})
	}
	return out, nil
}
