package redisproxy_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

// What cannot be compared with a plain Redis, because no two servers answer it
// alike.
func TestConnectionCommands(t *testing.T) {
	r := newRig(t, nil)
	password := r.cluster.Password("dify")
	login := []string{"AUTH", "dify", password}
	w := dialWire(t, r.addr)
	has := func(args []string, wants ...string) {
		t.Helper()
		got := w.do(t, args...)
		for _, want := range wants {
			if !strings.Contains(got, want) {
				t.Errorf("%v: got %q, want %q", args, got, want)
			}
		}
	}
	has([]string{"HELLO", "3"}, "-NOAUTH")
	has([]string{"HELLO", "4"}, "-NOPROTO")
	has([]string{"HELLO", "3", "AUTH", "dify", "wrong"}, "-WRONGPASS")
	has([]string{"HELLO", "3", "AUTH", "dify", password, "SETNAME", "me"}, "%7\r\n", "$5\r\nredis\r\n", "standalone", "master")
	has([]string{"CLIENT", "INFO"}, "name=me")
	has([]string{"CLIENT", "LIST"}, "name=me")
	has([]string{"CLIENT", "ID"}, ":1\r\n")
	has([]string{"RESET"}, "+RESET")
	has([]string{"PING"}, "-NOAUTH")
	has([]string{"AUTH", password}, "+OK") // the default user
	has([]string{"ACL", "WHOAMI"}, "$4\r\ndify\r\n")
	has([]string{"ACL", "SETUSER", "x"}, "-ERR fournines: acl setuser", "configuration")
	has([]string{"ROLE"}, "*3\r\n$6\r\nmaster\r\n")
	has([]string{"TIME"}, "*2\r\n$10\r\n")
	has([]string{"INFO", "server"}, "redis_version:7.", "redis_mode:standalone", "tcp_port:")
	has([]string{"LOLWUT"}, "Redis ver. 7.")
	has([]string{"CLIENT", "KILL", "ID", "1"}, "-ERR fournines: client kill")
	has([]string{"WAIT", "1", "0"}, "writes.replicas")

	// What is refused is refused inside MULTI too, by its full name.
	for _, args := range [][]string{{"CLUSTER", "NODES"}, {"SLOWLOG", "GET"}, {"MEMORY", "STATS"}, {"CLIENT", "KILL", "ID", "1"}, {"CONFIG", "SET", "maxmemory", "1"}} {
		has([]string{"MULTI"}, "+OK")
		has(args, "-ERR fournines: "+strings.ToLower(args[0]+" "+args[1])+" is not available")
		has([]string{"EXEC"}, "-EXECABORT")
	}

	// Libraries of functions are at every master.
	has([]string{"FUNCTION", "LOAD", "#!lua name=lib\nredis.register_function('echo', function(k, a) return k[1] .. a[1] end)"}, "lib")
	dump := w.do(t, "FUNCTION", "DUMP")
	dump = strings.TrimSuffix(dump[strings.Index(dump, "\r\n")+2:], "\r\n")
	has([]string{"FUNCTION", "FLUSH"}, "+OK")
	has([]string{"FUNCTION", "RESTORE", dump}, "+OK")
	for shard := range 3 {
		key := keyOf(shard)
		has([]string{"FCALL", "echo", "1", key, "!"}, key+"!")
	}
	has([]string{"FUNCTION", "FLUSH"}, "+OK")

	has([]string{"SELECT", "3"}, "+OK")
	has([]string{"SET", "k", "v"}, "+OK")
	has([]string{"MEMORY", "USAGE", "k"}, ":")
	has([]string{"SELECT", "0"}, "+OK")
	has([]string{"SET", "k", "v"}, "+OK")
	has([]string{"FLUSHALL"}, "+OK")
	for _, db := range []string{"0", "3"} {
		has([]string{"SELECT", db}, "+OK")
		has([]string{"DBSIZE"}, ":0")
	}

	// While subscribed with RESP2, little else is allowed.
	sub := dialWire(t, r.addr, login...)
	for _, step := range [][2]string{
		{"SUBSCRIBE a", "$1\r\na\r\n:1"}, {"GET k", "-ERR Can't execute 'get'"}, {"PING", "$4\r\npong"},
		{"UNSUBSCRIBE", ":0"}, {"PUNSUBSCRIBE", "$-1\r\n:0"}, {"GET k", "$-1"},
	} {
		if got := sub.do(t, strings.Fields(step[0])...); !strings.Contains(got, step[1]) {
			t.Errorf("%s: got %q, want %q", step[0], got, step[1])
		}
	}
	if got := sub.do(t, "QUIT"); got != "+OK\r\n" {
		t.Errorf("QUIT: %q", got)
	}
	if _, err := sub.rd.Append(nil); !errors.Is(err, io.EOF) {
		t.Errorf("after QUIT: %v", err)
	}
	if err := r.client(t, 0).Ping(context.Background()).Err(); err != nil {
		t.Error(err)
	}
}
