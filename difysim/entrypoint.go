package difysim

import (
	"fmt"
	"strings"
)

// Role is what a simulator process does.
type Role string

// The roles of a process.
const (
	RoleAPI     Role = "api"
	RoleWorker  Role = "worker"
	RoleMigrate Role = "migrate"
)

// Entrypoint reads MODE and MIGRATION_ENABLED as the entry point of Dify's image
// does. migrate tells that a migration comes first, skipped when another replica
// is at it.
func Entrypoint(getenv func(string) string) (role Role, migrate bool, err error) {
	migrate = strings.EqualFold(getenv("MIGRATION_ENABLED"), "true")
	switch mode := getenv("MODE"); mode {
	case "", "api":
		return RoleAPI, migrate, nil
	case "worker":
		return RoleWorker, migrate, nil
	case "migration":
		return RoleMigrate, false, nil
	default:
		return "", false, fmt.Errorf("MODE=%q: the simulator knows api, worker and migration", mode)
	}
}
