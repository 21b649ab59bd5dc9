package audit

import (
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// node is a value of a YAML file that knows its place. Anchors, aliases and
// merges are followed. The zero node is what does not exist.
type node struct {
	y    *yaml.Node
	key  *yaml.Node // its name in the mapping around it; nil in lists
	file *file
}

func (n node) ok() bool { return n.y != nil && n.y.ShortTag() != "!!null" }

func (n node) isMap() bool  { return n.y != nil && n.y.Kind == yaml.MappingNode }
func (n node) isList() bool { return n.y != nil && n.y.Kind == yaml.SequenceNode }

// scalar reports whether n is a single value.
func (n node) scalar() bool { return n.ok() && n.y.Kind == yaml.ScalarNode }

// maxMerges bounds how deep "<<" is followed: an alias may name itself.
const maxMerges = 10

// pairs returns the fields of a mapping, its own before those merged in.
func (n node) pairs() []node { return n.fields(0) }

func (n node) fields(depth int) []node {
	if !n.isMap() || depth > maxMerges {
		return nil
	}
	var own, merged []node
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.y.Content); i += 2 {
		key, value := n.y.Content[i], resolve(n.y.Content[i+1])
		if key.ShortTag() != "!!merge" {
			seen[key.Value] = true
			own = append(own, node{value, key, n.file})
			continue
		}
		sources := []*yaml.Node{value}
		if value.Kind == yaml.SequenceNode {
			sources = value.Content
		}
		for _, s := range sources {
			merged = append(merged, node{resolve(s), nil, n.file}.fields(depth+1)...)
		}
	}
	for _, m := range merged {
		if !seen[m.name()] {
			seen[m.name()] = true
			own = append(own, m)
		}
	}
	return own
}

func resolve(y *yaml.Node) *yaml.Node {
	for range maxMerges {
		if y.Kind != yaml.AliasNode || y.Alias == nil {
			break
		}
		y = y.Alias
	}
	return y
}

// name is the key that n stands under.
func (n node) name() string {
	if n.key == nil {
		return ""
	}
	return n.key.Value
}

// get follows names through mappings.
func (n node) get(path ...string) node {
	for _, name := range path {
		next := node{}
		for _, p := range n.pairs() {
			if p.name() == name {
				next = p
				break
			}
		}
		n = next
	}
	return n
}

// items returns the elements of a list, or n itself when it is a single value
// where a list is usual.
func (n node) items() []node {
	switch {
	case n.isList():
		out := make([]node, len(n.y.Content))
		for i, c := range n.y.Content {
			out[i] = node{resolve(c), nil, n.file}
		}
		return out
	case n.scalar():
		return []node{n}
	}
	return nil
}

// text is a single value as it is written, without quotes.
func (n node) text() string {
	if !n.scalar() {
		return ""
	}
	return n.y.Value
}

func (n node) int() (int, bool) {
	v, err := strconv.Atoi(n.text())
	return v, err == nil
}

// intOr returns the number, or a default when there is none.
func (n node) intOr(def int) int {
	if v, ok := n.int(); ok {
		return v
	}
	return def
}

// at is where n stands: a single value at the value, anything else at its name.
func (n node) at() Place {
	switch {
	case n.y == nil:
		return Place{}
	case n.key != nil && (n.y.Kind != yaml.ScalarNode || n.y.Value == ""):
		return Place{File: n.file.name, Line: n.key.Line, Column: n.key.Column}
	}
	return Place{File: n.file.name, Line: n.y.Line, Column: n.y.Column}
}

// atOr is the place of the first of n and others that exists.
func (n node) atOr(others ...node) Place {
	for _, m := range append([]node{n}, others...) {
		if m.y != nil && m.file != nil {
			return m.at()
		}
	}
	return Place{}
}

// texts returns the values of a list.
func (n node) texts() []string {
	var out []string
	for _, i := range n.items() {
		out = append(out, i.text())
	}
	return out
}

// walk calls f for n and everything below it.
func (n node) walk(f func(n node)) { n.descend(f, 0) }

// maxDepth bounds walk: an anchor may contain its own alias.
const maxDepth = 60

func (n node) descend(f func(n node), depth int) {
	if n.y == nil || depth > maxDepth {
		return
	}
	f(n)
	switch {
	case n.isMap():
		for _, p := range n.pairs() {
			p.descend(f, depth+1)
		}
	case n.isList():
		for _, i := range n.items() {
			i.descend(f, depth+1)
		}
	}
}

// isTrue reports whether a text means yes.
func isTrue(s string) bool {
	switch strings.ToLower(s) {
	case "true", "yes", "on", "1":
		return true
	}
	return false
}
