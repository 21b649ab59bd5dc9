//go:build linux

package rig

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"time"

	"fournines/internal/process"
)

// Contender is a proxy that takes part. One without Program is what the others
// are measured against: no proxy at all.
type Contender struct {
	Name    string // as a flag names it
	Title   string // with its version
	Program string
	// Files are templates, each with the name it is written to.
	Files map[string]string
	// Argv is the command line behind the program; "{dir}" stands for the directory.
	Argv []string
	Env  []string
	// Owner is the account it runs as, for a caller who is root; zero is the caller's.
	Owner process.Owner
}

// Peer says how to find and start a contender that is not ours.
type Peer struct {
	Name string
	// Places are where its program may be, below the tools' directory; then PATH counts.
	Places []string
	// Program is its name in PATH; empty is Name.
	Program string
	Version []string // arguments that make it say its version
	Module  string   // of a program in Go
	Files   map[string]string
	Argv    []string
	Env     []string
}

// PeerNames are the names of peers, in their order.
func PeerNames(peers []Peer) []string {
	var names []string
	for _, p := range peers {
		names = append(names, p.Name)
	}
	return names
}

// Find returns the peer as a contender, or why it is not there.
func (p *Peer) Find(ctx context.Context, tools string) (*Contender, error) {
	c := &Contender{Name: p.Name, Files: p.Files, Argv: p.Argv, Env: p.Env}
	for _, place := range p.Places {
		if found, _ := filepath.Glob(filepath.Join(tools, place)); len(found) > 0 {
			c.Program = found[0]
		}
	}
	if c.Program == "" {
		name := p.Program
		if name == "" {
			name = p.Name
		}
		c.Program = InPath(name)
	}
	if c.Program == "" {
		return nil, errors.New("not installed; see make setup-bench")
	}
	version, err := peerVersion(ctx, c.Program, p.Module, p.Version)
	if err != nil {
		return nil, err
	}
	c.Title = p.Name + " " + version
	return c, nil
}

// peerVersion asks a program for its version. One that was built from a Go
// module may not know it; what was built into it does.
func peerVersion(ctx context.Context, program, module string, args []string) (string, error) {
	number := regexp.MustCompile(`\d+\.\d+(\.\d+)*`)
	if info, err := buildinfo.ReadFile(program); err == nil && module != "" {
		for _, m := range append(info.Deps, &info.Main) {
			if v := number.FindString(m.Version); m.Path == module && v != "" {
				return v, nil
			}
		}
	}
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %.200s", program, strings.Join(args, " "), err, out)
	}
	v := number.Find(bytes.ReplaceAll(out, []byte(program), nil)) // a path may have numbers, too
	if v == nil {
		return "", fmt.Errorf("%s %s tells no version: %.200s", program, strings.Join(args, " "), out)
	}
	return string(v), nil
}

// InPath finds a program, also where a user's PATH has no system programs; it
// returns "" when there is none.
func InPath(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		if abs, err := filepath.Abs(path); err == nil {
			return abs
		}
	}
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	return ""
}

// Start writes the contender's files, filled with data, into dir and starts it
// on the given processors (nil: any). It does not wait for it to serve.
func (c *Contender) Start(dir string, cpus []int, templates fs.FS, data any) (*Process, error) {
	for from, to := range c.Files {
		t, err := template.ParseFS(templates, "peers/"+from)
		if err != nil {
			return nil, err
		}
		var text bytes.Buffer
		if err := t.Execute(&text, data); err != nil {
			return nil, err
		}
		// Some hold a password.
		if err := process.WriteFile(filepath.Join(dir, to), text.Bytes(), 0o600, c.Owner); err != nil {
			return nil, err
		}
	}
	fill := func(in []string) []string {
		out := slices.Clone(in)
		for i := range out {
			out[i] = strings.ReplaceAll(out[i], "{dir}", dir)
		}
		return out
	}
	return Start(Command{
		Name: c.Name, Dir: dir, CPUs: cpus, Owner: c.Owner,
		Argv: append([]string{c.Program}, fill(c.Argv)...), Env: fill(c.Env),
	})
}

// startTime is how long a contender may take until it serves.
const startTime = 30 * time.Second

// AwaitService asks until so many questions in a row were answered rightly:
// until a proxy has heard of the health of its backends, it may refuse some.
func AwaitService(ctx context.Context, p *Process, inARow int, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for good := 0; good < inARow; {
		err := ask(ctx)
		if err == nil {
			good++
			continue
		}
		good = 0
		if ctx.Err() != nil {
			return fmt.Errorf("%s does not serve: %w: %s", p.Name, err, p.LastWords())
		}
		if err := p.Pause(ctx, 50*time.Millisecond); err != nil && p.Alive() != nil {
			return err
		}
	}
	return nil
}

// Addresses finds loopback addresses for servers, and gives none out twice. The
// zero value is ready.
type Addresses struct{ taken map[uint16]bool }

// Free returns one below the ports that outgoing connections get.
func (a *Addresses) Free() (netip.AddrPort, error) {
	if a.taken == nil {
		a.taken = map[uint16]bool{}
	}
	for port := uint16(21000); port < 29000; port++ {
		if a.taken[port] {
			continue
		}
		at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
		ln, err := net.Listen("tcp4", at.String())
		if err != nil {
			continue
		}
		a.taken[port] = true
		return at, ln.Close()
	}
	return netip.AddrPort{}, errors.New("no free port between 21000 and 29000")
}

// contenders are ours and the peers that an order asks for; the others are
// said to be missing.
func (o *Order) contenders(ctx context.Context, ours *Contender, peers []Peer, progress io.Writer) (all []*Contender, missing map[string]string, err error) {
	if _, err := os.Stat(ours.Program); err != nil {
		return nil, nil, fmt.Errorf("-ours: %w; build it with make build", err)
	}
	all, missing = []*Contender{ours}, map[string]string{}
	for _, p := range peers {
		if !slices.Contains(o.Peers, p.Name) {
			continue
		}
		c, err := p.Find(ctx, o.Tools)
		if err != nil {
			missing[p.Name] = err.Error()
			fmt.Fprintf(progress, "%s takes no part: %v\n", p.Name, err)
			continue
		}
		all = append(all, c)
	}
	return all, missing, nil
}
