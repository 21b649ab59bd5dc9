package redisproxy_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"fournines/redisproxy"
)

var update = flag.Bool("update", false, "write the table of commands in docs/redis.md anew")

// compared are the commands that TestSameRepliesAsPlainRedis sends.
func compared() map[string]bool {
	containers := map[string]bool{}
	for _, c := range redisproxy.Commands() {
		if name, _, ok := strings.Cut(c.Name, "|"); ok {
			containers[name] = true
		}
	}
	names := map[string]bool{}
	for _, t := range templates {
		f := strings.Fields(strings.ToLower(t))
		name := f[0]
		if containers[name] && len(f) > 1 {
			name += "|" + f[1]
		}
		names[name] = true
	}
	return names
}

// covered says which test holds a command that a comparison cannot, because its
// answer differs between any two servers, or takes more than one connection.
var covered = map[string]string{
	"acl|whoami": "TestConnectionCommands", "auth": "TestConnectionCommands", "client|id": "TestConnectionCommands",
	"client|info": "TestConnectionCommands", "client|list": "TestConnectionCommands", "hello": "TestConnectionCommands",
	"info": "TestConnectionCommands", "quit": "TestConnectionCommands", "reset": "TestConnectionCommands", "role": "TestConnectionCommands",
	"time": "TestConnectionCommands", "lolwut": "TestConnectionCommands", "flushall": "TestConnectionCommands",
	"function|restore": "TestConnectionCommands", "memory|usage": "TestConnectionCommands",
	"scan": "TestTypicalUse", "randomkey": "TestTypicalUse",
	"subscribe": "TestTypicalUse", "psubscribe": "TestTypicalUse", "unsubscribe": "TestConnectionCommands", "punsubscribe": "TestConnectionCommands",
	"ssubscribe": "TestShardedPubSub", "sunsubscribe": "TestShardedPubSub",
}

// What the page says is what the proxy does, and a test holds every command.
func TestTableOfCommands(t *testing.T) {
	const page = "../docs/redis.md"
	comparedOnes := compared()
	lists := map[redisproxy.Support][]string{}
	reasons := map[string][]string{}
	var order []string
	n := 0
	for _, c := range redisproxy.Commands() {
		name := strings.ReplaceAll(c.Name, "|", " ")
		if c.Support == redisproxy.Refused {
			if reasons[c.Reason] == nil {
				order = append(order, c.Reason)
			}
			reasons[c.Reason] = append(reasons[c.Reason], name)
			continue
		}
		if comparedOnes[c.Name] {
			n++
		} else if covered[c.Name] == "" {
			t.Errorf("%s is available and no test holds it", c.Name)
		} else {
			name += "°"
		}
		lists[c.Support] = append(lists[c.Support], name)
	}
	if n < 150 {
		t.Errorf("%d commands are compared with a plain Redis, fewer than 150", n)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d commands answer as a plain Redis 7.0 does, byte by byte, with RESP2 and RESP3, in database 0 and another one; ° marks those that tests hold in another way.\n\n", n)
	b.WriteString("| what happens | commands |\n| --- | --- |\n")
	for _, kind := range []struct {
		support redisproxy.Support
		title   string
	}{
		{redisproxy.Relayed, "goes to the master of its keys, which are in one slot"},
		{redisproxy.Split, "split by slot and joined, each part atomic"},
		{redisproxy.Own, "answered by the proxy, from all masters, or on a connection of its own"},
	} {
		fmt.Fprintf(&b, "| %s | %s |\n", kind.title, strings.Join(lists[kind.support], ", "))
	}
	b.WriteString("\n| refused, because | commands |\n| --- | --- |\n")
	for _, reason := range order {
		fmt.Fprintf(&b, "| %s | %s |\n", reason, strings.Join(reasons[reason], ", "))
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- commands: begin -->\n", "<!-- commands: end -->"
	before, rest, ok := strings.Cut(string(text), begin)
	old, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no %q", page, begin)
	}
	if old == b.String() {
		return
	}
	if !*update {
		t.Fatalf("the table of commands in %s is not what the proxy does; write it anew: go test ./redisproxy -run TableOfCommands -update", page)
	}
	if err := os.WriteFile(page, []byte(before+begin+b.String()+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}
