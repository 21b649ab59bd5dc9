package availability

// Kind sorts faults by where they come from.
type Kind string

// The kinds of faults.
const (
	Hardware Kind = "hardware"
	Zone     Kind = "zone"
	Network  Kind = "network"
	Software Kind = "software"
	Human    Kind = "human"
	Planned  Kind = "planned"
	External Kind = "external"
)

// Scope says what one event of a fault takes, and what its rate counts.
type Scope string

// The scopes.
const (
	// ScopeUnit: each part of the group has the rate; an event takes one part.
	ScopeUnit Scope = "each part"
	// ScopeGroup: the group has the rate; an event takes one of its parts, the
	// one that matters (the primary).
	ScopeGroup Scope = "the layer"
	// ScopeHost and ScopeZone: each host or zone has the rate, and an event takes
	// all that stands in it.
	ScopeHost Scope = "each host"
	ScopeZone Scope = "each zone"
	// ScopeService: the installation has the rate; nothing is redundant against it.
	ScopeService Scope = "the installation"
)

// Fault is one class of failures: how often, what it takes, and what users lose.
type Fault struct {
	// Name is how reports and a model file call it.
	Name string `json:"name"`
	// About says what happens.
	About string `json:"about"`
	Kind  Kind   `json:"kind"`
	Scope Scope  `json:"scope"`
	// Group whose parts are taken; for ScopeUnit and ScopeGroup.
	Group string `json:"group,omitempty"`
	// Rate names the assumption of events a year, Part is which part of them are
	// of this class.
	Rate string  `json:"rate"`
	Part float64 `json:"part"`
	// Away names the assumption of how long what was taken stays away: the time
	// in which a second fault finds less to fail over to. Empty for
	// ScopeService.
	Away string `json:"away,omitempty"`
	// Outage names the assumption of how long users notice the event while the
	// rest takes over. Without meaning for a part that has no replacement: its
	// users wait until it is back.
	Outage string `json:"outage"`
	// Share of the requests that fail meanwhile; 0 is what one part of the group
	// carries.
	Share float64 `json:"share"`
	// ShareSource says where Share comes from.
	ShareSource string `json:"shareSource,omitempty"`
	// Drills that measure the class, by name. None: it cannot be drilled.
	Drills []string `json:"drills,omitempty"`
	// ShareOnly: a drill of this class lasts as long as it is told to, and says
	// which share of the requests fails, but not how long it takes to mend.
	ShareOnly bool `json:"shareOnly,omitempty"`
	// Outside: not counted in the availability of the installation but beside it.
	Outside bool `json:"outside,omitempty"`
	// Measured is what drills recorded; empty when none did.
	Measured []Event `json:"measured,omitempty"`
}

// Event is what one recorded drill cost its users.
type Event struct {
	// Minutes that the loss would have lasted if all requests had failed.
	Minutes float64 `json:"minutes"`
	// Share of the requests that failed while the fault lasted, 0 to 1.
	Share float64 `json:"share"`
}

// Shares that are assumed.
const (
	rolling = "assumed: a release or a configuration goes to one instance in four before somebody or something stops it"
	worst   = "every request, as long as no drill says less"
)

// faults is the catalogue. Drill names are those of `fournines drill`, of the
// fault tables under bench/results, and of drills to come.
var faults = []Fault{
	{Name: "api-crash", About: "an instance of Dify's API ends", Kind: Software, Scope: ScopeUnit, Group: groupAPI, Rate: "crash", Part: 1, Away: "restart", Outage: "cut", Drills: []string{"api-kill", "instance-kill"}},
	{Name: "api-hang", About: "an instance of Dify's API hangs", Kind: Software, Scope: ScopeUnit, Group: groupAPI, Rate: "crash", Part: 0.25, Away: "restart", Outage: "cut", Drills: []string{"api-hang", "instance-hang"}},
	{Name: "api-degraded", About: "an instance of Dify's API is slow or answers with errors", Kind: Software, Scope: ScopeUnit, Group: groupAPI, Rate: "crash", Part: 0.25, Away: "restart", Outage: "cut", Drills: []string{"instance-slow", "instance-errors", "instance-flap", "api-slow", "api-errors"}},
	{Name: "worker-crash", About: "a worker of Dify ends", Kind: Software, Scope: ScopeUnit, Group: groupWorker, Rate: "crash", Part: 1, Away: "restart", Outage: "cut", Drills: []string{"worker-kill"}},
	{Name: "gateway-crash", About: "a gateway ends", Kind: Software, Scope: ScopeUnit, Group: groupGateway, Rate: "crash", Part: 1, Away: "restart", Outage: "cut", Drills: []string{"gateway-kill"}},
	{Name: "pgproxy-crash", About: "a PostgreSQL proxy ends", Kind: Software, Scope: ScopeUnit, Group: groupPgproxy, Rate: "crash", Part: 1, Away: "restart", Outage: "cut", Drills: []string{"pgproxy-kill"}},
	{Name: "redisproxy-crash", About: "a Redis proxy ends", Kind: Software, Scope: ScopeUnit, Group: groupRedisPx, Rate: "crash", Part: 1, Away: "restart", Outage: "cut", Drills: []string{"redisproxy-kill"}},
	{Name: "primary-crash", About: "the primary of PostgreSQL ends", Kind: Software, Scope: ScopeGroup, Group: groupPG, Rate: "failover", Part: 0.25, Away: "restart", Outage: "switch", Share: 1, ShareSource: worst, Drills: []string{"primary-kill", "server-kill", "node-kill"}},
	{Name: "primary-hang", About: "the primary of PostgreSQL hangs", Kind: Software, Scope: ScopeGroup, Group: groupPG, Rate: "failover", Part: 0.1, Away: "restart", Outage: "switch", Share: 1, ShareSource: worst, Drills: []string{"primary-hang", "node-hang"}},
	{Name: "disk-full", About: "the disk of the primary is full", Kind: Software, Scope: ScopeService, Rate: "diskFull", Part: 1, Outage: "person", Share: 0.5, ShareSource: "assumed: reads go on, writes fail", Drills: []string{"disk-full"}, ShareOnly: true},
	{Name: "redis-master-crash", About: "a master of Redis ends", Kind: Software, Scope: ScopeGroup, Group: groupRedis, Rate: "failover", Part: 0.25, Away: "restart", Outage: "switch", Share: 1, ShareSource: worst, Drills: []string{"redis-master-kill", "redis-kill"}},
	{Name: "etcd-member-crash", About: "a member of etcd ends", Kind: Software, Scope: ScopeUnit, Group: groupEtcd, Rate: "crash", Part: 0.25, Away: "restart", Outage: "cut", Drills: []string{"etcd-kill", "etcd-member"}},
	{Name: "vectors-crash", About: "the vector database ends", Kind: Software, Scope: ScopeUnit, Group: groupVectors, Rate: "crash", Part: 1, Away: "restart", Outage: "cut", Drills: []string{"milvus-kill", "vectors-kill"}},
	{Name: "plugin-daemon-crash", About: "Dify's plugin daemon ends; it cannot be replicated", Kind: Software, Scope: ScopeUnit, Group: groupPlugins, Rate: "crash", Part: 1, Away: "restart", Outage: "cut", Drills: []string{"plugin-daemon-kill"}},
	{Name: "common-bug", About: "a defect stops all instances of a layer at once", Kind: Software, Scope: ScopeService, Rate: "commonBug", Part: 1, Outage: "person", Share: 1, ShareSource: "a layer that all requests need"},
	{Name: "overload", About: "more arrives than instances and their scaling carry", Kind: Software, Scope: ScopeService, Rate: "peak", Part: 0.05, Outage: "overload", Share: 0.2, ShareSource: "assumed: admission refuses one request in five", Drills: []string{"flood", "thundering-herd", "overload"}, ShareOnly: true},

	{Name: "host-loss", About: "a host ends with all that runs on it", Kind: Hardware, Scope: ScopeHost, Rate: "host", Part: 1, Away: "hostOut", Outage: "switch", Share: 1, ShareSource: worst, Drills: []string{"host-loss", "host-kill"}},

	{Name: "zone-loss", About: "a zone loses power", Kind: Zone, Scope: ScopeZone, Rate: "zone", Part: 0.5, Away: "zoneOut", Outage: "switch", Share: 1, ShareSource: worst, Drills: []string{"zone-loss"}},
	{Name: "zone-cut", About: "a zone is cut off by the network and lives on", Kind: Zone, Scope: ScopeZone, Rate: "zone", Part: 0.5, Away: "zoneOut", Outage: "switch", Share: 1, ShareSource: worst, Drills: []string{"zone-cut"}},
	{Name: "region-loss", About: "all zones are lost together", Kind: Zone, Scope: ScopeService, Rate: "region", Part: 1, Outage: "regionOut", Share: 1, ShareSource: "there is one region"},

	{Name: "network-degraded", About: "packets between zones are lost or late", Kind: Network, Scope: ScopeService, Rate: "network", Part: 1, Outage: "connectivity", Share: 0.05, ShareSource: "assumed: TCP and local zones hide most of it", Drills: []string{"packet-loss", "cross-zone-delay", "one-way-partition"}, ShareOnly: true},
	{Name: "load-balancer", About: "what holds the stable address fails", Kind: Network, Scope: ScopeService, Rate: "loadBalancer", Part: 1, Outage: "balancer", Share: 1, ShareSource: "every request passes it", Drills: []string{"loadbalancer-kill"}},
	{Name: "dns", About: "names cannot be resolved", Kind: Network, Scope: ScopeService, Rate: "dns", Part: 1, Outage: "resolver", Share: 0.1, ShareSource: "assumed: most clients have the answer cached", Drills: []string{"dns-failure"}, ShareOnly: true},

	{Name: "bad-release", About: "a release breaks what it replaces", Kind: Human, Scope: ScopeService, Rate: "badRelease", Part: 1, Outage: "person", Share: 0.25, ShareSource: rolling, Drills: []string{"bad-release"}, ShareOnly: true},
	{Name: "bad-config", About: "a change of configuration breaks something", Kind: Human, Scope: ScopeService, Rate: "badConfig", Part: 1, Outage: "person", Share: 0.25, ShareSource: rolling, Drills: []string{"config-error"}, ShareOnly: true},
	{Name: "operator-error", About: "an operator breaks something by hand", Kind: Human, Scope: ScopeService, Rate: "operator", Part: 1, Outage: "person", Share: 0.25, ShareSource: "assumed: one layer in one zone"},
	{Name: "data-loss", About: "the database has to be restored from a backup", Kind: Human, Scope: ScopeService, Rate: "dataLoss", Part: 1, Outage: "restore", Share: 1, ShareSource: "every request needs the database"},
	{Name: "certificate-expiry", About: "a certificate expires", Kind: Human, Scope: ScopeService, Rate: "certificate", Part: 1, Outage: "person", Share: 1, ShareSource: "clients refuse the connection", Drills: []string{"certificate-expiry"}, ShareOnly: true},

	{Name: "release", About: "a release rolls through the instances", Kind: Planned, Scope: ScopeService, Rate: "release", Part: 1, Outage: "cut", Share: 0.25, ShareSource: "assumed: one instance in four at a time", Drills: []string{"gateway-restart", "rolling-upgrade", "api-rollout"}},
	{Name: "switchover", About: "the primary of PostgreSQL moves on purpose", Kind: Planned, Scope: ScopeGroup, Group: groupPG, Rate: "failover", Part: 0.5, Away: "restart", Outage: "switch", Share: 1, ShareSource: worst, Drills: []string{"switchover", "primary-switchover"}},
	{Name: "drain", About: "a host is drained for maintenance", Kind: Planned, Scope: ScopeHost, Rate: "drain", Part: 1, Away: "restart", Outage: "cut", Share: 0.25, ShareSource: "assumed: what runs on one host of four; it starts elsewhere", Drills: []string{"host-drain", "node-drain", "zone-drain"}},

	{Name: "llm-provider", About: "the provider of the models is away", Kind: External, Scope: ScopeService, Rate: "llmProvider", Part: 1, Outage: "llmOut", Share: 0.5, ShareSource: "assumed: half of the requests need it in that time", Drills: []string{"llm-errors", "llm-hang"}, ShareOnly: true, Outside: true},
}

// Catalogue returns the classes of faults that the model knows, without
// measurements.
func Catalogue() []Fault { return append([]Fault(nil), faults...) }
