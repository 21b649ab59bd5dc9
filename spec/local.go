package spec

// NetworkMode says how the local engine separates zones.
type NetworkMode string

// The network modes.
const (
	// NetworkAuto takes namespaces when that is possible, else loopback.
	NetworkAuto NetworkMode = "auto"
	// NetworkNamespaces gives each zone a Linux network namespace.
	NetworkNamespaces NetworkMode = "namespaces"
	// NetworkLoopback gives each zone its own loopback addresses.
	NetworkLoopback NetworkMode = "loopback"
)

// SubnetAuto lets the local engine pick a free subnet.
const SubnetAuto = "auto"

// Local configures the engine that runs all zones on this machine.
type Local struct {
	// Address of this machine that the public ports are opened on. Anything
	// but loopback shows the stack to the network.
	Address string `yaml:"address"`
	// Ports are the public ports on that address.
	Ports Ports `yaml:"ports"`
	// Network is how zones are separated: namespaces gives each its own network
	// (Linux, root), so that zones can be cut off and slowed down; loopback
	// works everywhere but can only stop processes; auto takes namespaces
	// where it can.
	Network NetworkMode `yaml:"network" enum:"auto,namespaces,loopback"`
	// Subnet of all zones, a /16: 10.N.0.0/16 with namespaces, 127.N.0.0/16
	// with loopback; auto picks a free one.
	Subnet string `yaml:"subnet"`
	// CrossZoneDelay is the round-trip time added between any two zones, half
	// of it in each direction; inside a zone nothing is added. 30ms is what
	// distant zones have, 8ms a good pair. Needs network namespaces.
	CrossZoneDelay Duration `yaml:"crossZoneDelay" range:"0s..10s"`
	// Logs is how much the log files in the data directory may take.
	Logs Logs `yaml:"logs"`
	// RestartBackoff is the pause before a process that died is started
	// again. It doubles with each death, and starts over after a minute of
	// running.
	RestartBackoff Backoff `yaml:"restartBackoff"`
}

// Ports are the public ports of the local engine. The port of each service is
// its number here plus portOffset.
type Ports struct {
	// Gateway serves Dify's API over HTTP.
	Gateway int `yaml:"gateway" range:"1..65535"`
	// Postgres serves the database through pgproxy.
	Postgres int `yaml:"postgres" range:"1..65535"`
	// Redis serves the Redis Cluster through redisproxy.
	Redis int `yaml:"redis" range:"1..65535"`
	// Milvus serves the vector database.
	Milvus int `yaml:"milvus" range:"1..65535"`
	// Prometheus serves metrics and their web page.
	Prometheus int `yaml:"prometheus" range:"1..65535"`
	// Alertmanager serves alerts and their web page.
	Alertmanager int `yaml:"alertmanager" range:"1..65535"`
	// Console serves the web page that shows the stack.
	Console int `yaml:"console" range:"1..65535"`
	// PortOffset is added to each of them, to run a second stack beside the
	// first. Keep the sums below 32768: from there on the kernel takes ports
	// for outgoing connections, and one of those may hold yours.
	PortOffset int `yaml:"portOffset" range:"0..50000"`
}

// Logs bounds the log file of each process.
type Logs struct {
	// MaxSize is the size at which the log of a process is rotated.
	MaxSize Bytes `yaml:"maxSize" range:"64KiB..10GiB"`
	// Keep is the number of rotated files kept for each process.
	Keep int `yaml:"keep" range:"0..100"`
}

// Backoff is a growing pause.
type Backoff struct {
	// Min is the first pause.
	Min Duration `yaml:"min" range:"10ms..1m"`
	// Max bounds its growth. At least min.
	Max Duration `yaml:"max" range:"10ms..1h"`
}

// Effective returns p with portOffset added to every port, and portOffset zero.
func (p Ports) Effective() Ports {
	o := p.PortOffset
	return Ports{
		Gateway:      p.Gateway + o,
		Postgres:     p.Postgres + o,
		Redis:        p.Redis + o,
		Milvus:       p.Milvus + o,
		Prometheus:   p.Prometheus + o,
		Alertmanager: p.Alertmanager + o,
		Console:      p.Console + o,
	}
}

func defaultLocal() Local {
	return Local{
		Address: "127.0.0.1",
		Ports: Ports{
			Gateway:      8480,
			Postgres:     15432,
			Redis:        16379,
			Milvus:       29530,
			Prometheus:   9490,
			Alertmanager: 9493,
			Console:      8490,
		},
		Network:        NetworkAuto,
		Subnet:         SubnetAuto,
		CrossZoneDelay: 0,
		Logs:           Logs{MaxSize: 20 * mebibyte, Keep: 3},
		RestartBackoff: Backoff{Min: Duration(500 * millisecond), Max: Duration(30 * second)},
	}
}
