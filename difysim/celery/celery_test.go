package celery_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"fournines/difysim/celery"
	"fournines/internal/servertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMessageRoundTrip(t *testing.T) {
	raw, id, err := celery.Encode("dataset", "tasks.x.y", "here", "a", []string{"b", "c"})
	if err != nil {
		t.Fatal(err)
	}
	task, tag, err := celery.Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	var first string
	var second []string
	if err := task.Arg(0, &first); err != nil {
		t.Fatal(err)
	}
	if err := task.Arg(1, &second); err != nil {
		t.Fatal(err)
	}
	if task.ID != id || task.Name != "tasks.x.y" || task.Queue != "dataset" || tag == "" || first != "a" || len(second) != 2 {
		t.Errorf("task %+v", task)
	}
	if err := task.Arg(2, &first); err == nil {
		t.Error("an argument that is not there was read")
	}
	for _, field := range []string{`"content-type":"application/json"`, `"body_encoding":"base64"`, `"delivery_tag"`, `"root_id"`} {
		if !strings.Contains(string(raw), field) {
			t.Errorf("message lacks %s", field)
		}
	}
}

func FuzzDecode(f *testing.F) {
	raw, _, err := celery.Encode("q", "t", "o", 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"headers":{"task":"t","id":"i"},"properties":{"delivery_tag":"d"},"body":"[[]]"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if task, tag, err := celery.Decode(raw); err == nil && (tag == "" || task.ID == "") {
			t.Errorf("accepted without tag or id: %q", raw)
		}
	})
}

func TestQueue(t *testing.T) {
	server := servertest.NewRedis(t)
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr, DB: 1, Protocol: 2})
	t.Cleanup(func() { rdb.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p := celery.NewProducer(rdb, "test")
	c := celery.NewConsumer(rdb, time.Millisecond, "dataset", "other")
	if err := c.Bind(ctx); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := c.Next(ctx); ok || err != nil {
		t.Fatalf("empty queue: %v %v", ok, err)
	}
	var ids []string
	for _, name := range []string{"one", "two"} {
		id, err := p.Delay(ctx, "dataset", name)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	if n, err := p.Length(ctx, "dataset"); err != nil || n != 2 {
		t.Errorf("length %d %v", n, err)
	}
	for i, want := range []string{"one", "two"} {
		task, ok, err := c.Next(ctx)
		if err != nil || !ok || task.Name != want || task.ID != ids[i] {
			t.Fatalf("got %+v %v %v, want %s", task, ok, err, want)
		}
	}
	if n := rdb.Exists(ctx, "unacked", "unacked_index").Val(); n != 0 {
		t.Error("acknowledged tasks are still noted")
	}

	// A consumer that died between pop and acknowledgement.
	raw, _, err := celery.Encode("dataset", "three", "test")
	if err != nil {
		t.Fatal(err)
	}
	note, err := json.Marshal([]any{json.RawMessage(raw), "", "dataset"})
	if err != nil {
		t.Fatal(err)
	}
	rdb.HSet(ctx, "unacked", "tag", note)
	rdb.ZAdd(ctx, "unacked_index", redis.Z{Score: 1, Member: "tag"})
	if n, err := c.Restore(ctx); err != nil || n != 1 {
		t.Fatalf("restored %d %v", n, err)
	}
	task, ok, err := c.Next(ctx)
	if err != nil || !ok || task.Name != "three" || !task.Redelivered {
		t.Errorf("got %+v %v %v", task, ok, err)
	}
	rdb.LPush(ctx, "dataset", "not a message")
	if _, ok, err := c.Next(ctx); ok || err == nil {
		t.Error("rubbish was taken for a task")
	}
}
