package adminhttp

import "net"

// Config sets the admin API of a process that has one on its "adminListen",
// beside /metrics, /livez and /readyz. It is the section "admin" of its file.
type Config struct {
	// API serves it. Default true.
	API bool `yaml:"api"`
	// TokenFile holds the token that callers of the API send as "Authorization:
	// Bearer". Others must not be able to read it. It is needed when
	// adminListen can be reached from other machines.
	TokenFile string `yaml:"tokenFile"`
}

// Validate tells bad what is wrong, with its field. listen is adminListen.
func (c *Config) Validate(listen string, bad func(field, format string, args ...any)) {
	if listen == "" || !c.API || c.TokenFile != "" {
		return
	}
	if _, _, err := net.SplitHostPort(listen); err != nil {
		return // said elsewhere
	}
	if !Loopback(listen) {
		bad("admin.tokenFile", "needed because other machines can reach adminListen %q; or set admin.api: false, or listen on a loopback address", listen)
	}
}
