// Package route knows which keys a command has and which node of the cluster
// serves them: the server's own command table and the map of slots.
package route

import (
	"bufio"
	"bytes"
	_ "embed" // the table of a known server version
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"

	"fournines/internal/resp"
)

// Flags are the properties of a command that routing depends on.
type Flags uint16

// The flags that are kept from the server's table.
const (
	Write Flags = 1 << iota
	ReadOnly
	Blocking
	Admin
	PubSub
	NoMulti
)

var flagNames = [...]string{"write", "readonly", "blocking", "admin", "pubsub", "no_multi"}

// Spec says where a command has keys, as the server's "key specifications" do:
// first where a group of keys begins, then which arguments of it are keys.
type Spec struct {
	// Keyword, when not empty, is looked for from argument From on (from the
	// end, backwards, when From is negative); the keys begin behind it.
	// Otherwise they begin at argument From.
	Keyword string
	From    int

	// KeyNum tells that the argument First-1 … of the group holds the number of
	// keys: NumAt is its place and First that of the first key, both relative
	// to the beginning. Otherwise the keys reach up to Last (relative to the
	// beginning, or to the end of the arguments when negative), and Limit n > 1
	// takes only the first n-th part of them.
	KeyNum bool
	NumAt  int
	First  int
	Last   int
	Limit  int
	Step   int
}

// Command is one entry of the table.
type Command struct {
	// Name is in lower case; subcommands are "container|name".
	Name string
	// Arity counts the name; negative means at least that many arguments.
	Arity int
	Flags Flags
	Specs []Spec
	// AskServer is set when the table cannot tell the keys; COMMAND GETKEYS can.
	AskServer bool
	// Refusal is why clients do not get it, "" when they do. The owner of a table
	// sets it before the table is shared.
	Refusal string
	// Sub holds the subcommands of a container, nil for others.
	Sub map[string]*Command
}

// HasKeys tells whether the command can have keys.
func (c *Command) HasKeys() bool { return len(c.Specs) > 0 || c.AskServer }

// Container is the name without a subcommand.
func (c *Command) Container() string {
	name, _, _ := strings.Cut(c.Name, "|")
	return name
}

// ArityOK checks the number of arguments, the name included.
func (c *Command) ArityOK(n int) bool {
	return c.Arity >= 0 && n == c.Arity || c.Arity < 0 && n >= -c.Arity
}

// Table maps names to commands. It is immutable.
type Table struct {
	commands map[string]*Command
}

//go:embed commands-7.0.txt
var builtin string

// Builtin returns the table of Redis 7.0, which serves until the cluster has
// told its own.
func Builtin() *Table {
	t := &Table{commands: make(map[string]*Command)}
	sc := bufio.NewScanner(strings.NewReader(builtin))
	for sc.Scan() {
		if c, err := parseLine(sc.Text()); err == nil {
			t.add(c)
		}
	}
	return t
}

func (t *Table) add(c *Command) {
	container, sub, ok := strings.Cut(c.Name, "|")
	if !ok {
		if old := t.commands[c.Name]; old != nil {
			c.Sub = old.Sub
		}
		t.commands[c.Name] = c
		return
	}
	parent := t.commands[container]
	if parent == nil {
		parent = &Command{Name: container, Arity: -2}
		t.commands[container] = parent
	}
	if parent.Sub == nil {
		parent.Sub = make(map[string]*Command)
	}
	parent.Sub[sub] = c
}

// Len is the number of commands, subcommands not counted.
func (t *Table) Len() int { return len(t.commands) }

// All returns every command and subcommand, in no order.
func (t *Table) All() []*Command {
	var all []*Command
	for _, c := range t.commands {
		all = append(all, c)
		for _, sub := range c.Sub {
			all = append(all, sub)
		}
	}
	return all
}

// Lookup finds the command that args call: the subcommand where there is one,
// the container when its subcommand is unknown, nil when there is none.
func (t *Table) Lookup(args [][]byte) *Command {
	var buf [32]byte
	c := t.commands[string(lower(buf[:0], args[0]))]
	if c != nil && c.Sub != nil && len(args) > 1 {
		if sub := c.Sub[string(lower(buf[:0], args[1]))]; sub != nil {
			return sub
		}
	}
	return c
}

// lower appends the lower-case form of b, cut where no name is as long.
func lower(dst, b []byte) []byte {
	for _, c := range b[:min(len(b), 32)] {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}

// ErrKeys is returned when the arguments do not have keys where the command
// needs them.
var ErrKeys = errors.New("invalid number of keys or missing keyword")

// Keys appends to dst the positions in args that hold keys, in rising order
// for every command with one group of keys.
func (c *Command) Keys(dst []int, args [][]byte) ([]int, error) {
	for i := range c.Specs {
		var err error
		if dst, err = c.Specs[i].keys(dst, args); err != nil {
			return dst, err
		}
	}
	if c.Name == "sort" {
		// Not in the table: the last STORE wins, each is followed by its key.
		store := 0
		for i := 2; i+1 < len(args); i++ {
			switch {
			case bytes.EqualFold(args[i], []byte("store")):
				store = i + 1
				i++
			case bytes.EqualFold(args[i], []byte("limit")):
				i += 2
			case bytes.EqualFold(args[i], []byte("by")), bytes.EqualFold(args[i], []byte("get")):
				i++
			}
		}
		if store > 0 {
			dst = append(dst, store)
		}
	}
	return dst, nil
}

func (s *Spec) keys(dst []int, args [][]byte) ([]int, error) {
	begin := s.From
	if s.Keyword != "" {
		begin = s.find(args)
		if begin < 0 {
			return dst, nil // an optional group that is not there
		}
	}
	if begin >= len(args) {
		return dst, nil
	}
	if s.KeyNum {
		at := begin + s.NumAt
		if at >= len(args) {
			return dst, ErrKeys
		}
		n, err := strconv.Atoi(string(args[at]))
		first := begin + s.First
		if err != nil || n < 0 || n > (len(args)-first+s.Step-1)/s.Step {
			return dst, ErrKeys
		}
		for i := range n {
			dst = append(dst, first+i*s.Step)
		}
		return dst, nil
	}
	last := begin + s.Last
	if s.Last < 0 {
		last = len(args) + s.Last
		if s.Limit > 1 {
			last = begin + (last-begin+1)/s.Limit - 1
		}
	}
	if last >= len(args) {
		return dst, ErrKeys
	}
	for i := begin; i <= last; i += s.Step {
		dst = append(dst, i)
	}
	return dst, nil
}

func (s *Spec) find(args [][]byte) int {
	if s.From >= 0 {
		for i := s.From; i < len(args); i++ {
			if equalFold(args[i], s.Keyword) {
				return i + 1
			}
		}
		return -1
	}
	for i := len(args) + s.From; i > 0; i-- {
		if equalFold(args[i], s.Keyword) {
			return i + 1
		}
	}
	return -1
}

func equalFold(b []byte, upper string) bool {
	if len(b) != len(upper) {
		return false
	}
	for i, c := range b {
		if c >= 'a' && c <= 'z' {
			c -= 'a' - 'A'
		}
		if c != upper[i] {
			return false
		}
	}
	return true
}

// String renders the table, one sorted line per command, in the form that
// Builtin reads.
func (t *Table) String() string {
	var lines []string
	for _, c := range t.All() {
		lines = append(lines, c.line())
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n") + "\n"
}

// line is "name arity flag,flag spec spec"; "-" stands for no flags, "?" for
// keys that only the server knows.
func (c *Command) line() string {
	var flags []string
	for i, name := range flagNames {
		if c.Flags&(1<<i) != 0 {
			flags = append(flags, name)
		}
	}
	f := strings.Join(flags, ",")
	if f == "" {
		f = "-"
	}
	out := fmt.Sprintf("%s %d %s", c.Name, c.Arity, f)
	for _, s := range c.Specs {
		kind, a, b := "range", s.Last, s.Limit
		if s.KeyNum {
			kind, a, b = "keynum", s.NumAt, s.First
		}
		out += fmt.Sprintf(" %s@%d:%s:%d:%d:%d", s.Keyword, s.From, kind, a, b, s.Step)
	}
	if c.AskServer {
		out += " ?"
	}
	return out
}

func parseLine(line string) (*Command, error) {
	f := strings.Fields(line)
	if len(f) < 3 {
		return nil, fmt.Errorf("command table: short line %q", line)
	}
	arity, err := strconv.Atoi(f[1])
	if err != nil {
		return nil, fmt.Errorf("command table: arity in %q: %w", line, err)
	}
	c := &Command{Name: f[0], Arity: arity}
	for i, name := range flagNames {
		for have := range strings.SplitSeq(f[2], ",") {
			if have == name {
				c.Flags |= 1 << i
			}
		}
	}
	for _, text := range f[3:] {
		if text == "?" {
			c.AskServer = true
			continue
		}
		keyword, rest, _ := strings.Cut(text, "@")
		s := Spec{Keyword: keyword}
		var kind string
		var a, b int
		if _, err := fmt.Sscanf(strings.ReplaceAll(rest, ":", " "), "%d %s %d %d %d", &s.From, &kind, &a, &b, &s.Step); err != nil || s.Step < 1 {
			return nil, fmt.Errorf("command table: keys in %q", line)
		}
		if kind == "keynum" {
			s.KeyNum, s.NumAt, s.First = true, a, b
		} else {
			s.Last, s.Limit = a, b
		}
		c.Specs = append(c.Specs, s)
	}
	return c, nil
}

// ParseCommands reads the server's answer to COMMAND.
func ParseCommands(v resp.Value) (*Table, error) {
	t := &Table{commands: make(map[string]*Command, len(v.Elems))}
	for _, e := range v.Elems {
		c, err := parseEntry(e)
		if err != nil {
			return nil, err
		}
		t.add(c)
		if len(e.Elems) > 9 {
			for _, se := range e.Elems[9].Elems {
				sub, err := parseEntry(se)
				if err != nil {
					return nil, err
				}
				t.add(sub)
			}
		}
	}
	if t.Len() == 0 {
		return nil, errors.New("the server's command table is empty")
	}
	return t, nil
}

func parseEntry(e resp.Value) (*Command, error) {
	if len(e.Elems) < 6 {
		return nil, errors.New("malformed entry in the server's command table")
	}
	arity, ok := e.Elems[1].Int()
	if !ok {
		return nil, errors.New("malformed arity in the server's command table")
	}
	c := &Command{Name: strings.ToLower(string(e.Elems[0].Str)), Arity: int(arity)}
	movable := false
	for _, f := range e.Elems[2].Elems {
		for i, name := range flagNames {
			if string(f.Str) == name {
				c.Flags |= 1 << i
			}
		}
		movable = movable || string(f.Str) == "movablekeys"
	}
	if len(e.Elems) > 8 {
		for _, spec := range e.Elems[8].Elems {
			s, known, isKey := parseSpec(spec)
			switch {
			case !isKey:
			case known:
				c.Specs = append(c.Specs, s)
			case c.Name != "sort" && c.Name != "sort_ro":
				c.AskServer = true
			}
		}
		return c, nil
	}
	// Before Redis 7: only the range of the first keys is known.
	first, _ := e.Elems[3].Int()
	last, _ := e.Elems[4].Int()
	step, _ := e.Elems[5].Int()
	if movable {
		c.AskServer = true
	} else if first > 0 && step > 0 {
		if last > 0 {
			last -= first
		}
		c.Specs = []Spec{{From: int(first), Last: int(last), Step: int(step)}}
	}
	return c, nil
}

func parseSpec(v resp.Value) (s Spec, known, isKey bool) {
	isKey = true
	for _, f := range field(v, "flags").Elems {
		if string(f.Str) == "not_key" {
			isKey = false
		}
	}
	begin, find := field(v, "begin_search"), field(v, "find_keys")
	bs, fs := field(begin, "spec"), field(find, "spec")
	switch string(field(begin, "type").Str) {
	case "index":
		s.From = number(bs, "index")
	case "keyword":
		s.Keyword = strings.ToUpper(string(field(bs, "keyword").Str))
		s.From = number(bs, "startfrom")
	default:
		return s, false, isKey
	}
	s.Step = max(1, number(fs, "keystep"))
	switch string(field(find, "type").Str) {
	case "range":
		s.Last, s.Limit = number(fs, "lastkey"), number(fs, "limit")
	case "keynum":
		s.KeyNum, s.NumAt, s.First = true, number(fs, "keynumidx"), number(fs, "firstkey")
	default:
		return s, false, isKey
	}
	return s, true, isKey
}

// field finds a named value in a map, which version 2 sends as a flat array.
func field(v resp.Value, name string) resp.Value {
	for i := 0; i+1 < len(v.Elems); i += 2 {
		if string(v.Elems[i].Str) == name {
			return v.Elems[i+1]
		}
	}
	return resp.Value{}
}

func number(v resp.Value, name string) int {
	n, _ := field(v, name).Int()
	return int(n)
}
