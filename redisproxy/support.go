package redisproxy

import (
	"sort"

	"fournines/redisproxy/route"
)

// Support says what the proxy does with a command.
type Support string

// The kinds of support.
const (
	// Relayed to the master that has its keys, which must be in one slot.
	Relayed Support = "relayed"
	// Split by slot and joined; not atomic across slots.
	Split Support = "split"
	// Own: the proxy answers it, asks all masters, or gives it a connection.
	Own Support = "own"
	// Refused with an error that names the reason.
	Refused Support = "refused"
)

// CommandSupport is one line of the table of commands.
type CommandSupport struct {
	// Name is in lower case; a subcommand is "container|name".
	Name    string
	Support Support
	// Reason is why a command is refused.
	Reason string
}

// Commands tells what the proxy does with each command of Redis 7.0, by name.
// Those of later servers are relayed when their table says where the keys are.
func Commands() []CommandSupport {
	var all []CommandSupport
	for _, c := range marked(route.Builtin()).All() {
		if c.Sub != nil {
			continue // its subcommands are listed
		}
		line := CommandSupport{Name: c.Name, Support: Relayed, Reason: c.Refusal}
		_, special := handlers[c.Container()]
		switch {
		case line.Reason != "":
			line.Support = Refused
		case splittable[c.Name]:
			line.Support = Split
		case special || isHelp(c):
			line.Support = Own
		}
		all = append(all, line)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Name < all[j].Name })
	return all
}
