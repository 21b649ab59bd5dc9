package redisproxy_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"fournines/internal/eventually"
	"fournines/internal/resp"
	"fournines/redisproxy/keyspace"
)

func TestShardedPubSub(t *testing.T) {
	r := newRig(t, nil)
	ctx := context.Background()
	var names []string
	for shard := range 3 {
		names = append(names, keyOf(shard))
	}
	publisher := r.client(t, 2)
	for _, version := range []int{2, 3} {
		t.Run(fmt.Sprint("resp", version), func(t *testing.T) {
			// Two clients in different databases: channels are the same in all.
			var subs []*redis.PubSub
			for db := range 2 {
				ps := r.client(t, db, func(o *redis.Options) { o.Protocol = version }).SSubscribe(ctx, names...)
				t.Cleanup(func() { _ = ps.Close() })
				for range names {
					if _, err := ps.Receive(ctx); err != nil {
						t.Fatal(err)
					}
				}
				subs = append(subs, ps)
			}
			for _, name := range names {
				// A classic message of the same name is another one.
				if err := publisher.Publish(ctx, name, "classic").Err(); err != nil {
					t.Fatal(err)
				}
				if err := publisher.SPublish(ctx, name, "to "+name).Err(); err != nil {
					t.Fatal(err)
				}
			}
			for _, ps := range subs {
				got := map[string]string{}
				for range names {
					m, err := ps.ReceiveMessage(ctx)
					if err != nil {
						t.Fatal(err)
					}
					got[m.Channel] = m.Payload
				}
				for _, name := range names {
					if got[name] != "to "+name {
						t.Errorf("%s: got %q", name, got[name])
					}
				}
			}
			if got := publisher.PubSubShardNumSub(ctx, names[0], "none").Val(); got[names[0]] != 2 || got["none"] != 0 {
				t.Errorf("PUBSUB SHARDNUMSUB: %v", got)
			}
			if got := publisher.PubSubShardChannels(ctx, "key-*").Val(); len(got) != len(names) {
				t.Errorf("PUBSUB SHARDCHANNELS: %v", got)
			}
			if err := subs[0].SUnsubscribe(ctx, names[0]); err != nil {
				t.Fatal(err)
			}
			eventually.Nil(t, time.Minute, func() error {
				if got := publisher.PubSubShardNumSub(ctx, names[0]).Val()[names[0]]; got != 1 {
					return fmt.Errorf("%d subscribers", got)
				}
				return nil
			})
		})
	}
	eventually.Nil(t, time.Minute, func() error {
		if got := publisher.PubSubShardChannels(ctx, "*").Val(); len(got) > 0 {
			return fmt.Errorf("subscribed when everybody has left: %v", got)
		}
		return nil
	})

	// Word by word as Redis 7.0 answers.
	w := dialWire(t, r.addr, "AUTH", "dify", r.cluster.Password("dify"))
	for _, step := range [][2]string{
		{"SUNSUBSCRIBE", "*3\r\n$12\r\nsunsubscribe\r\n$-1\r\n:0\r\n"},
		{"SSUBSCRIBE a", "*3\r\n$10\r\nssubscribe\r\n$1\r\na\r\n:1\r\n"},
		{"SUBSCRIBE b", "*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:1\r\n"}, // counted apart
		{"GET k", "-ERR Can't execute 'get': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context\r\n"},
		{"UNSUBSCRIBE b", "*3\r\n$11\r\nunsubscribe\r\n$1\r\nb\r\n:0\r\n"},
		{"PING", "*2\r\n$4\r\npong\r\n$0\r\n\r\n"}, // subscribed still
		{"SUNSUBSCRIBE", "*3\r\n$12\r\nsunsubscribe\r\n$1\r\na\r\n:0\r\n"},
		{"PING", "+PONG\r\n"},
		// In a transaction a shard channel is where a key of its name would be.
		{"MULTI", "+OK\r\n"}, {"SET {t}k v", "+QUEUED\r\n"}, {"SPUBLISH {t}c m", "+QUEUED\r\n"}, {"EXEC", "*2\r\n+OK\r\n:0\r\n"},
		{"MULTI", "+OK\r\n"}, {"SET " + names[0] + " v", "+QUEUED\r\n"}, {"SPUBLISH " + names[1] + " m", "-CROSSSLOT"}, {"EXEC", "-EXECABORT"},
		{"SPUBLISH a m", ":0\r\n"},
		{"PUBSUB SHARDNUMSUB a", "*2\r\n$1\r\na\r\n:0\r\n"},
	} {
		if got := w.do(t, strings.Fields(step[0])...); !strings.HasPrefix(got, step[1]) {
			t.Errorf("%s: got %q, want %q", step[0], got, step[1])
		}
	}

	// The subscription follows its slot, and outlives its master, without a word to
	// the client.
	sub := dialWire(t, r.addr, "AUTH", "dify", r.cluster.Password("dify"))
	sub.do(t, "SSUBSCRIBE", names[1])
	_ = sub.conn.SetDeadline(time.Time{})
	got := make(chan string, 10000)
	go func() {
		defer close(got)
		for {
			raw, err := sub.rd.Append(nil)
			v, _, perr := resp.Parse(raw)
			if err != nil || perr != nil || len(v.Elems) != 3 || string(v.Elems[0].Str) != "smessage" {
				return // the connection was closed at the end of the test, or something else was sent
			}
			got <- string(v.Elems[2].Str)
		}
	}()
	arrives := func(payload string) {
		t.Helper()
		eventually.Nil(t, time.Minute, func() error {
			if err := publisher.SPublish(ctx, names[1], payload).Err(); err != nil {
				return err
			}
			for {
				select {
				case m, ok := <-got:
					if !ok {
						t.Fatal("the subscription has ended")
					}
					if m == payload {
						return nil
					}
				default:
					return errors.New("not received")
				}
			}
		})
	}
	arrives("first")
	slot := keyspace.Slot([]byte(names[1]))
	from := r.cluster.Owner(t, slot)
	moveSlot(t, r, slot, from, (from+1)%3, func() {})
	arrives("after the slot has moved")
	r.cluster.Kill(t, (from+1)%3)
	arrives("after its master has died")
	// All of them, once each and in order.
	if err := publisher.SPublish(ctx, names[1], "0").Err(); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		if err := publisher.SPublish(ctx, names[1], strconv.Itoa(i+1)).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for m := range got {
		if m == "0" {
			break // what came before is of earlier attempts
		}
	}
	for i := range 100 {
		if m := <-got; m != strconv.Itoa(i+1) {
			t.Fatalf("got %q, want %d", m, i+1)
		}
	}
}
