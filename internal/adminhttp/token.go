package adminhttp

import (
	"fmt"
	"net"
	"os"
	"strings"
)

// minToken is the least length of a token.
const minToken = 16

// ReadToken returns the token in the file at path, without the white space
// around it, and "" without a path. It refuses a file that others can read, and
// a token of fewer than 16 characters.
func ReadToken(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	st, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if st.Mode().Perm()&0o037 != 0 {
		return "", fmt.Errorf("%s has mode %#o; others must not read it: chmod 600", path, st.Mode().Perm())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(text))
	if len(token) < minToken {
		return "", fmt.Errorf("the token in %s has fewer than %d characters", path, minToken)
	}
	return token, nil
}

// Loopback reports whether only this machine can reach a listener at address,
// host:port. An address that cannot be read counts as one that others can reach.
func Loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
