package audit

import (
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// composeFile is a docker compose file.
type composeFile struct {
	*file
	root node
	// literal are the values as they stand in the file, where a variable was put
	// in.
	literal map[*yaml.Node]string
}

var variable = regexp.MustCompile(`\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*)(?:(:?[-?+])([^}]*))?\}|\$([A-Za-z_][A-Za-z0-9_]*)`)

// newCompose puts the variables of .env and the defaults that the file gives
// into its values, as docker compose does.
func newCompose(f *file, root node) *composeFile {
	c := &composeFile{file: f, root: root, literal: map[*yaml.Node]string{}}
	seen := map[*yaml.Node]bool{}
	var put func(y *yaml.Node, depth int)
	put = func(y *yaml.Node, depth int) {
		if seen[y] || depth > maxDepth {
			return
		}
		seen[y] = true
		if y.Kind == yaml.ScalarNode && strings.Contains(y.Value, "$") {
			c.literal[y] = y.Value
			y.Value = variable.ReplaceAllStringFunc(y.Value, func(s string) string {
				m := variable.FindStringSubmatch(s)
				if s == "$$" {
					return "$"
				}
				name := m[1] + m[4]
				value, set := f.env[name]
				switch {
				case m[2] == ":-" && value == "", m[2] == "-" && !set:
					return m[3]
				case strings.HasSuffix(m[2], "+") && set:
					return m[3]
				case !set:
					return s // from the environment, which nobody knows here
				}
				return value
			})
		}
		for _, child := range y.Content {
			put(child, depth+1)
		}
	}
	put(root.y, 0)
	return c
}

// fromVariable reports whether a value is a variable without a default.
func (c *composeFile) fromVariable(n node) bool {
	text, ok := c.literal[n.y]
	if !ok {
		return false
	}
	m := variable.FindStringSubmatch(text)
	return m != nil && !strings.HasSuffix(m[2], "-")
}

func (c *composeFile) services() []node { return c.root.get("services").pairs() }

// active reports whether docker compose starts a service: it has no profile, or
// COMPOSE_PROFILES names one of them.
func (c *composeFile) active(service node) bool {
	profiles := service.get("profiles").texts()
	for p := range strings.SplitSeq(c.env["COMPOSE_PROFILES"], ",") {
		if p == "*" || p != "" && contains(profiles, strings.TrimSpace(p)) {
			return true
		}
	}
	return len(profiles) == 0
}

// units are the services as containers.
func (c *composeFile) units() []*unit {
	var out []*unit
	for _, s := range c.services() {
		u := &unit{compose: c, name: s.name(), node: s, workload: s, image: s.get("image"), env: map[string]envVar{}, replicas: 1}
		u.at = s.at()
		if r, ok := s.get("deploy", "replicas").int(); ok {
			u.replicas = r
		} else if r, ok := s.get("scale").int(); ok {
			u.replicas = r
		}
		if s.get("deploy", "mode").text() == "global" {
			u.replicas = 2 // one on each node of a swarm
		}
		for _, name := range []string{"entrypoint", "command"} {
			cmd := s.get(name)
			if cmd.ok() {
				u.argsNode = cmd
			}
			if cmd.scalar() {
				u.args = append(u.args, strings.Fields(cmd.text())...)
			} else {
				u.args = append(u.args, cmd.texts()...)
			}
		}
		env := s.get("environment")
		for _, p := range env.pairs() {
			u.env[p.name()] = envVar{value: p.text(), node: p, literal: !c.fromVariable(p)}
		}
		for _, i := range env.items() {
			name, value, _ := strings.Cut(i.text(), "=")
			u.env[name] = envVar{value: value, node: i, literal: !c.fromVariable(i)}
		}
		// What a profile leaves out does not run.
		if c.active(s) {
			u.setRole()
		}
		out = append(out, u)
	}
	return out
}
