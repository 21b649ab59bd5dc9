package spec

// Role says what a zone runs.
type Role string

// The roles of a zone.
const (
	// RoleFull runs everything: Dify, the proxies and the servers.
	RoleFull Role = "full"
	// RoleQuorum runs only the members that a majority needs: etcd, a
	// PostgreSQL server and Redis nodes, but neither Dify nor proxies.
	RoleQuorum Role = "quorum"
)

// Zone is one failure domain.
type Zone struct {
	// Name of the zone, as it appears in component names ("postgres-a"),
	// metrics and drills. Unique.
	Name string `yaml:"name" pattern:"^[a-z][a-z0-9-]{0,15}$" wants:"at most 16 lower-case letters, digits and dashes, starting with a letter"`
	// Role of the zone. A full zone runs Dify, the proxies and the servers; a
	// quorum zone is light and runs only the members that a majority needs
	// (etcd, PostgreSQL, Redis).
	Role Role `yaml:"role" enum:"full,quorum"`
	// NodeLabel is the value of the label topology.kubernetes.io/zone on the
	// zone's nodes, like eu-central-1a; empty means the name. Kubernetes only.
	NodeLabel string `yaml:"nodeLabel"`
}

// Label is the value of topology.kubernetes.io/zone on the zone's nodes.
func (z Zone) Label() string {
	if z.NodeLabel != "" {
		return z.NodeLabel
	}
	return z.Name
}

// SetDefaults makes a zone full unless the file says otherwise.
func (z *Zone) SetDefaults() { z.Role = RoleFull }

func defaultZones() []Zone {
	return []Zone{
		{Name: "a", Role: RoleFull},
		{Name: "b", Role: RoleFull},
		{Name: "c", Role: RoleQuorum},
	}
}

// FullZones returns the names of the zones with role full, in their order.
func (s *Spec) FullZones() []string {
	var names []string
	for _, z := range s.Zones {
		if z.Role == RoleFull {
			names = append(names, z.Name)
		}
	}
	return names
}

// VectorsZone returns the zone that runs the vector database: the one that
// vectors.zone names, else the first full zone.
func (s *Spec) VectorsZone() string {
	if s.Vectors.Zone != "" {
		return s.Vectors.Zone
	}
	if full := s.FullZones(); len(full) > 0 {
		return full[0]
	}
	return ""
}
