package spec

// TLSMode says where connections are encrypted.
type TLSMode string

// TLSOff encrypts no connection.
const TLSOff TLSMode = "off"

// Security holds what concerns the whole installation.
type Security struct {
	// TLS between clients, proxies and servers. Only off so far, so keep
	// local.address on loopback or put a TLS terminator in front.
	TLS TLSMode `yaml:"tls" enum:"off"`
}

func defaultSecurity() Security {
	return Security{TLS: TLSOff}
}
