package audit

import (
	"path"
	"strconv"
	"strings"
)

// role is what a container does in a Dify installation.
type role string

const (
	roleAPI      role = "api"
	roleWorker   role = "worker"
	roleBeat     role = "beat"
	roleMigrate  role = "migration"
	roleWeb      role = "web"
	rolePlugin   role = "plugin daemon"
	roleSandbox  role = "sandbox"
	roleEntry    role = "entrance" // the reverse proxy in front
	rolePostgres role = "postgres"
	roleRedis    role = "redis"
	roleVector   role = "vector database"
	roleQuorum   role = "quorum" // etcd, ZooKeeper
)

// serves reports whether every request of a user passes it.
func (r role) serves() bool { return r == roleAPI || r == roleWeb || r == roleEntry }

// keeps reports whether it holds data.
func (r role) keeps() bool {
	return r == rolePostgres || r == roleRedis || r == roleVector || r == roleQuorum
}

type envVar struct {
	value string
	node  node
	// literal: the value stands in the input, not in a secret or a variable.
	literal bool
}

// unit is one container of a workload, in a compose file or a manifest.
type unit struct {
	compose *composeFile // nil in Kubernetes
	object  *object      // nil in a compose file
	name    string
	at      Place
	node    node // the service, or the container
	// workload is the service, or the pod's spec.
	workload node
	image    node
	args     []string
	argsNode node
	env      map[string]envVar
	replicas int
	role     role
}

// title names it in messages.
func (u *unit) title() string {
	if u.object != nil {
		return u.object.title()
	}
	return "service " + u.name
}

// imageName is the image without registry, tag and digest.
func (u *unit) imageName() string {
	image, _, _ := strings.Cut(u.image.text(), "@")
	base := path.Base(image)
	base, _, _ = strings.Cut(base, ":")
	return base
}

// tag of the image and whether it has a digest.
func (u *unit) tag() (tag string, digest bool) {
	image, _, digest := strings.Cut(u.image.text(), "@")
	_, tag, _ = strings.Cut(path.Base(image), ":")
	return tag, digest
}

// setRole looks at the image, and in Dify's own image at the mode.
func (u *unit) setRole() {
	name := strings.ToLower(u.imageName())
	is := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(name, w) {
				return true
			}
		}
		return false
	}
	switch {
	case is("exporter", "backup", "pgbouncer", "haproxy-exporter"):
	case is("dify-api") || name == "api" && strings.Contains(u.image.text(), "dify"):
		switch mode := u.mode(); mode {
		case "worker":
			u.role = roleWorker
		case "beat":
			u.role = roleBeat
		case "migration", "job":
			u.role = roleMigrate
		default:
			u.role = roleAPI
		}
	case is("dify-web"):
		u.role = roleWeb
	case is("dify-plugin-daemon"):
		u.role = rolePlugin
	case is("dify-sandbox"):
		u.role = roleSandbox
	case is("nginx", "traefik", "caddy", "haproxy", "envoy", "higress", "openresty"):
		u.role = roleEntry
	case is("postgres", "pgvector", "timescaledb", "spilo", "patroni"):
		u.role = rolePostgres
	case is("redis", "valkey", "keydb", "dragonfly") && !is("sentinel"):
		u.role = roleRedis
	case is("weaviate", "qdrant", "milvus", "chroma", "opensearch", "elasticsearch"):
		u.role = roleVector
	case is("etcd", "zookeeper", "consul"):
		u.role = roleQuorum
	}
}

func (u *unit) mode() string {
	if m := u.env["MODE"].value; m != "" {
		return m
	}
	args := strings.Join(u.args, " ")
	switch {
	case strings.Contains(args, "celery") && strings.Contains(args, " beat"):
		return "beat"
	case strings.Contains(args, "celery") && strings.Contains(args, " worker"):
		return "worker"
	case strings.Contains(args, "upgrade-db"), strings.Contains(args, "db upgrade"):
		return "migration"
	}
	return "api"
}

// envInt is a number from the environment, or a default.
func (u *unit) envInt(name string, def int) int {
	if v, err := strconv.Atoi(u.env[name].value); err == nil {
		return v
	}
	return def
}

// envAt is where a variable stands, or the unit.
func (u *unit) envAt(name string) Place {
	if v, ok := u.env[name]; ok {
		return v.node.at()
	}
	return u.at
}

// difyVersion is the version of Dify's image, as numbers; false when the tag is
// none.
func (u *unit) difyVersion() ([3]int, bool) {
	tag, _ := u.tag()
	parts := strings.SplitN(tag, ".", 3)
	var v [3]int
	if len(parts) != 3 {
		return v, false
	}
	for i, p := range parts {
		p, _, _ = strings.Cut(p, "-")
		n, err := strconv.Atoi(p)
		if err != nil {
			return v, false
		}
		v[i] = n
	}
	return v, true
}

// withRole returns the units of a role.
func (in *Inventory) withRole(roles ...role) []*unit {
	var out []*unit
	for _, u := range in.units {
		for _, r := range roles {
			if u.role == r {
				out = append(out, u)
			}
		}
	}
	return out
}

// settingsOf returns the settings that a unit's server gets in its arguments:
// "-c name=value" of postgres, "--name value" of redis-server.
func (u *unit) settingsOf() settings {
	s := settings{name: u.title(), at: u.at, values: map[string]setting{}, partial: true}
	put := func(name, value string) {
		at := u.argsNode.atOr(u.node)
		for _, i := range u.argsNode.items() {
			if strings.Contains(i.text(), name) {
				at = i.at()
				break
			}
		}
		s.values[strings.ToLower(name)] = setting{value: value, place: at}
	}
	args := u.args
	if len(args) >= 3 && (args[len(args)-2] == "-c" || args[len(args)-2] == "-ec") && strings.HasSuffix(args[0], "sh") {
		args = strings.Fields(args[len(args)-1])
	}
	for i, a := range args {
		switch {
		case u.role == rolePostgres && (a == "-c" || a == "--set") && i+1 < len(args):
			if name, value, ok := strings.Cut(strings.Trim(args[i+1], `'"`), "="); ok {
				put(name, value)
			}
		case u.role == rolePostgres && strings.HasPrefix(a, "-c") && len(a) > 2:
			if name, value, ok := strings.Cut(a[2:], "="); ok {
				put(name, value)
			}
		case u.role == roleRedis && strings.HasPrefix(a, "--"):
			name, value, ok := strings.Cut(a[2:], "=")
			if !ok && i+1 < len(args) && !strings.HasPrefix(args[i+1], "--") {
				value = args[i+1]
			}
			put(name, strings.Trim(value, `'"`))
		}
	}
	if u.role == roleRedis {
		// A configuration file of its own says more than the arguments.
		for _, a := range args {
			if strings.HasSuffix(a, ".conf") {
				return settings{name: s.name, at: s.at, values: s.values, partial: true}
			}
		}
		s.partial = false
	}
	return s
}
