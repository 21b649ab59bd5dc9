package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"fournines/component/postgres"
	"fournines/topology"
)

// How long the nodes may take while a database is replaced. A standby copies the
// whole primary.
const (
	stopNodesTimeout   = 2 * time.Minute
	newPrimaryTimeout  = 5 * time.Minute
	newStandbysTimeout = 6 * time.Hour
	replacePoll        = 250 * time.Millisecond
)

// Replacement puts another data directory in the place of the database of a
// running stack.
type Replacement struct {
	client *Client
	nodes  []replacedNode
	first  int // the node that gets the directory
	// began names what is set aside.
	began time.Time
}

type replacedNode struct {
	name     string
	agent    postgres.Agent
	powerOff bool
}

// NewReplacement looks at the stack in the data directory dir, which has to run.
// It changes nothing.
func NewReplacement(ctx context.Context, client *Client, dir string, now time.Time) (*Replacement, error) {
	r := &Replacement{client: client, first: -1, began: now}
	st, err := client.Status(ctx)
	if err != nil {
		return nil, err
	}
	for _, z := range st.Zones {
		for _, c := range z.Components {
			if c.Kind != "postgres" {
				continue
			}
			agent, err := postgres.LoadAgent(filepath.Join(dir, c.Name))
			if err != nil {
				return nil, err
			}
			if c.State == topology.Ready && (r.first < 0 || c.Role == postgres.RolePrimary) {
				r.first = len(r.nodes)
			}
			r.nodes = append(r.nodes, replacedNode{name: c.Name, agent: agent, powerOff: z.Power == "off"})
		}
	}
	if r.first < 0 || r.nodes[r.first].powerOff {
		return nil, errors.New("no PostgreSQL server of the stack is ready: start the stack first, the rest of it is needed to replace its database")
	}
	return r, nil
}

// Prepare is the directory to restore into; Replace moves it from there. It lies
// on the same disk as the node's own.
func (r *Replacement) Prepare() string {
	return r.nodes[r.first].agent.Data + "." + r.suffix("restored")
}

// Data are the data directories that are set aside, in the stack's order.
func (r *Replacement) Data() []string {
	var all []string
	for _, n := range r.nodes {
		all = append(all, n.agent.Data)
	}
	return all
}

func (r *Replacement) suffix(word string) string {
	return word + "-" + r.began.UTC().Format("20060102T150405")
}

// Replace stops all PostgreSQL servers and the scheduler of backups, sets their
// data directories aside, puts the prepared one in place of one of them, and
// starts that server as primary. It returns the directories that were set aside.
// With an error before the first directory was moved, all runs again as it did.
func (r *Replacement) Replace(ctx context.Context, say func(string)) (aside []string, err error) {
	say("stop PostgreSQL")
	if err := r.stop(ctx); err != nil {
		return nil, errors.Join(err, r.startAll(context.WithoutCancel(ctx)))
	}
	// From here on half of it is worse than all of it.
	ctx = context.WithoutCancel(ctx)
	first := r.nodes[r.first]
	if err := postgres.Forget(ctx, first.agent.Etcd, first.agent.Cluster); err != nil {
		return nil, errors.Join(err, r.startAll(ctx))
	}
	undo := func(cause error) error {
		for i, path := range aside {
			if path != "" {
				cause = errors.Join(cause, os.Rename(path, r.nodes[i].agent.Data))
			}
		}
		return errors.Join(cause, r.startAll(ctx))
	}
	for _, n := range r.nodes {
		path, err := n.agent.SetAside(r.suffix("before"))
		if err != nil {
			return nil, undo(fmt.Errorf("%s: %w", n.name, err))
		}
		aside = append(aside, path)
	}
	if err := os.Rename(r.Prepare(), first.agent.Data); err != nil {
		return nil, undo(fmt.Errorf("put the restored data directory in place: %w", err))
	}
	aside = slices.DeleteFunc(aside, func(path string) bool { return path == "" })
	say("start " + first.name + " as primary")
	if err := r.client.Start(ctx, first.name); err != nil {
		return aside, err
	}
	return aside, r.await(ctx, newPrimaryTimeout, func(st topology.Status) error {
		c := find(st, first.name)
		if c.State != topology.Ready || c.Role != postgres.RolePrimary {
			return fmt.Errorf("%s is %s %s: %s", first.name, c.State, c.Role, c.Reason)
		}
		return nil
	})
}

// Finish starts the other servers, which copy the primary, waits until they have
// and backup has taken a new one, and starts the scheduler of backups again.
func (r *Replacement) Finish(ctx context.Context, say func(string), backup func(context.Context) error) error {
	if err := r.startNodes(ctx); err != nil {
		return err
	}
	// Accounts and rights are those of the past; their passwords are today's.
	if err := r.client.Restart(ctx, "postgres-bootstrap"); err != nil {
		return err
	}
	say("copy the primary to the standbys")
	err := r.await(ctx, newStandbysTimeout, func(st topology.Status) error {
		names := []string{"postgres-bootstrap"}
		for _, n := range r.nodes {
			if !n.powerOff {
				names = append(names, n.name)
			}
		}
		for _, name := range names {
			if c := find(st, name); c.State != topology.Ready {
				return fmt.Errorf("%s is %s: %s", name, c.State, c.Reason)
			}
		}
		return nil
	})
	if err == nil {
		err = backup(ctx)
	}
	return errors.Join(err, r.client.Start(context.WithoutCancel(ctx), backupUnit))
}

// stop stops the standbys before the primary, so that none takes its place.
func (r *Replacement) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopNodesTimeout)
	defer cancel()
	if err := r.client.Stop(ctx, backupUnit); err != nil {
		return err
	}
	for i, n := range r.nodes {
		if i != r.first && !n.powerOff {
			if err := r.client.Stop(ctx, n.name); err != nil {
				return err
			}
		}
	}
	return r.client.Stop(ctx, r.nodes[r.first].name)
}

// startAll starts what stop has stopped; what runs stays as it is.
func (r *Replacement) startAll(ctx context.Context) error {
	return errors.Join(r.startNodes(ctx), r.client.Start(ctx, backupUnit))
}

func (r *Replacement) startNodes(ctx context.Context) error {
	var errs []error
	for _, n := range r.nodes {
		if !n.powerOff {
			errs = append(errs, r.client.Start(ctx, n.name))
		}
	}
	return errors.Join(errs...)
}

// await waits until the stack is as check wants it.
func (r *Replacement) await(ctx context.Context, limit time.Duration, check func(topology.Status) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		st, err := r.client.Status(ctx)
		if err == nil {
			err = check(st)
		}
		if err == nil {
			return nil
		}
		if sleep(ctx, replacePoll) != nil {
			return fmt.Errorf("not ready within %v: %w", limit, err)
		}
	}
}

// find returns the component called name; the zero one when there is none.
func find(st topology.Status, name string) topology.Component {
	for _, z := range st.Zones {
		for _, c := range z.Components {
			if c.Name == name {
				return c
			}
		}
	}
	return topology.Component{Name: name, State: topology.Stopped}
}
