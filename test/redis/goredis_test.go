package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"fournines/internal/eventually"
)

// goRedis is what services in Go do with go-redis, with the library's own
// defaults: RESP3, retries and a pool.
func goRedis(t *testing.T, url string) {
	t.Helper()
	ctx := context.Background()
	opt, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	cl := redis.NewClient(opt)
	defer cl.Close()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	same := func(what string, got, want any) {
		t.Helper()
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", what, d)
		}
	}
	ok(cl.FlushDB(ctx).Err())

	// A lock that only its holder releases.
	release := redis.NewScript(`if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0`)
	same("lock", cl.SetNX(ctx, "lock", "mine", time.Minute).Val(), true)
	same("lock again", cl.SetNX(ctx, "lock", "other", time.Minute).Val(), false)
	same("release by another", release.Run(ctx, cl, []string{"lock"}, "other").Val(), any(int64(0)))
	same("release", release.Run(ctx, cl, []string{"lock"}, "mine").Val(), any(int64(1)))

	// Optimistic counters of many goroutines.
	var wg sync.WaitGroup
	var failed atomic.Int64
	for range 8 {
		wg.Go(func() {
			for range 10 {
				for {
					err := cl.Watch(ctx, func(tx *redis.Tx) error {
						n, err := tx.Get(ctx, "counter").Int()
						if err != nil && !errors.Is(err, redis.Nil) {
							return err
						}
						_, err = tx.TxPipelined(ctx, func(p redis.Pipeliner) error { return p.Set(ctx, "counter", n+1, 0).Err() })
						return err
					}, "counter")
					if errors.Is(err, redis.TxFailedErr) {
						continue
					}
					if err != nil {
						failed.Add(1)
					}
					break
				}
			}
		})
	}
	wg.Wait()
	same("optimistic counter", cl.Get(ctx, "counter").Val(), "80")
	same("its errors", failed.Load(), int64(0))

	// A long pipeline keeps its order.
	cmds, err := cl.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i := range 1000 {
			p.RPush(ctx, fmt.Sprint("list", i%7), i)
		}
		return nil
	})
	ok(err)
	for i, c := range cmds {
		same("place in the list", c.(*redis.IntCmd).Val(), int64(i/7+1))
	}

	// Structs in hashes, a leader board, the small types.
	type user struct {
		Name string `redis:"name"`
		Age  int    `redis:"age"`
	}
	ok(cl.HSet(ctx, "user", user{"Ada", 36}).Err())
	var got user
	ok(cl.HGetAll(ctx, "user").Scan(&got))
	same("struct", got, user{"Ada", 36})
	for i := range 100 {
		ok(cl.ZAdd(ctx, "board", redis.Z{Score: float64(i), Member: fmt.Sprint("p", i)}).Err())
	}
	same("leaders", cl.ZRevRangeWithScores(ctx, "board", 0, 1).Val(), []redis.Z{{Score: 99, Member: "p99"}, {Score: 98, Member: "p98"}})
	same("rank", cl.ZRevRank(ctx, "board", "p90").Val(), int64(9))
	ok(cl.PFAdd(ctx, "visitors", "a", "b", "a").Err())
	same("visitors", cl.PFCount(ctx, "visitors").Val(), int64(2))
	same("bit field", cl.BitField(ctx, "bits", "SET", "u8", 0, 200, "GET", "u8", 0).Val(), []int64{0, 200})
	ok(cl.GeoAdd(ctx, "places", &redis.GeoLocation{Name: "Palermo", Longitude: 13.361389, Latitude: 38.115556}).Err())
	same("near", cl.GeoSearch(ctx, "places", &redis.GeoSearchQuery{Longitude: 15, Latitude: 37, Radius: 200, RadiusUnit: "km"}).Val(), []string{"Palermo"})
	ok(cl.Expire(ctx, "user", time.Hour).Err())
	if ttl := cl.TTL(ctx, "user").Val(); ttl < 59*time.Minute {
		t.Errorf("TTL %v", ttl)
	}
	if err := cl.Get(ctx, "absent").Err(); !errors.Is(err, redis.Nil) {
		t.Errorf("absent key: %v", err)
	}
	if err := cl.Incr(ctx, "user").Err(); err == nil || !redis.HasErrorPrefix(err, "WRONGTYPE") {
		t.Errorf("INCR of a hash: %v", err)
	}

	// Iterators.
	seen := map[string]bool{}
	for it := cl.ScanType(ctx, 0, "list*", 3, "list").Iterator(); it.Next(ctx); {
		seen[it.Val()] = true
	}
	same("lists found by SCAN", len(seen), 7)
	members := 0
	for it := cl.ZScan(ctx, "board", 0, "p1*", 10).Iterator(); it.Next(ctx); {
		members++
	}
	same("members and scores found by ZSCAN", members, 22)

	// A stream, worked off by a group of which one member dies.
	ok(cl.XGroupCreateMkStream(ctx, "work", "group", "0").Err())
	for i := range 60 {
		ok(cl.XAdd(ctx, &redis.XAddArgs{Stream: "work", Values: map[string]any{"n": i}}).Err())
	}
	var mu sync.Mutex
	var done []string
	finish := func(m redis.XMessage) {
		mu.Lock()
		defer mu.Unlock()
		done = append(done, m.Values["n"].(string))
		ok(cl.XAck(ctx, "work", "group", m.ID).Err())
	}
	taken, err := cl.XReadGroup(ctx, &redis.XReadGroupArgs{Group: "group", Consumer: "dead", Streams: []string{"work", ">"}, Count: 10}).Result()
	ok(err)
	same("taken by the one that dies", len(taken[0].Messages), 10)
	for {
		read, err := cl.XReadGroup(ctx, &redis.XReadGroupArgs{Group: "group", Consumer: "alive", Streams: []string{"work", ">"}, Count: 7, Block: 50 * time.Millisecond}).Result()
		if errors.Is(err, redis.Nil) {
			break
		}
		ok(err)
		for _, m := range read[0].Messages {
			finish(m)
		}
	}
	claimed, _, err := cl.XAutoClaim(ctx, &redis.XAutoClaimArgs{Stream: "work", Group: "group", Consumer: "alive", Start: "0", Count: 100}).Result()
	ok(err)
	for _, m := range claimed {
		finish(m)
	}
	slices.Sort(done)
	same("entries of the stream worked off once", len(slices.Compact(done)), 60)
	same("pending", cl.XPending(ctx, "work", "group").Val().Count, int64(0))

	// Messages on Go channels, by name and by pattern.
	ps := cl.PSubscribe(ctx, "news.*")
	defer ps.Close()
	ok(ps.Subscribe(ctx, "alarm"))
	for range 2 {
		_, err := ps.Receive(ctx)
		ok(err)
	}
	messages := ps.Channel()
	for i := range 50 {
		ok(cl.Publish(ctx, []string{"news.today", "alarm"}[i%2], i).Err())
	}
	for i := range 50 {
		select {
		case m := <-messages:
			same("message", m.Payload, strconv.Itoa(i))
		case <-time.After(time.Minute):
			t.Fatalf("message %d does not come", i)
		}
	}

	// Consumers that wait, on several lists and sets at once.
	results := make(chan string, 3)
	go func() { results <- cl.BLMove(ctx, "in", "out", "RIGHT", "LEFT", time.Minute).Val() }()
	go func() { results <- cl.BRPop(ctx, time.Minute, "a", "b", "c").Val()[0] }()
	go func() { results <- fmt.Sprint(cl.BZPopMin(ctx, time.Minute, "x", "y").Val().Member) }()
	ok(cl.LPush(ctx, "in", "moved").Err())
	ok(cl.RPush(ctx, "c", 1).Err())
	ok(cl.ZAdd(ctx, "y", redis.Z{Score: 1, Member: "least"}).Err())
	answers := []string{<-results, <-results, <-results}
	slices.Sort(answers)
	same("what waited", answers, []string{"c", "least", "moved"})

	// Functions.
	ok(cl.FunctionLoadReplace(ctx, "#!lua name=accounts\nredis.register_function('transfer', function(k, a) redis.call('DECRBY', k[1], a[1]) return redis.call('INCRBY', k[2], a[1]) end)").Err())
	same("function", cl.FCall(ctx, "transfer", []string{"from", "to"}, 5).Val(), any(int64(5)))
	same("its other key", cl.Get(ctx, "from").Val(), "-5")
	ok(cl.FunctionDelete(ctx, "accounts").Err())
}

// asynqQueue works off a queue of asynq, which is Lua over go-redis: retries,
// delayed tasks, unique ones and what is left at the end.
func asynqQueue(t *testing.T, opt asynq.RedisClientOpt) {
	t.Helper()
	const tasks = 200
	var ran [tasks]atomic.Int64
	server := asynq.NewServer(opt, asynq.Config{
		Concurrency: 8, LogLevel: asynq.FatalLevel, TaskCheckInterval: 100 * time.Millisecond, DelayedTaskCheckInterval: 100 * time.Millisecond,
		RetryDelayFunc: func(int, error, *asynq.Task) time.Duration { return 0 },
	})
	handle := asynq.HandlerFunc(func(_ context.Context, task *asynq.Task) error {
		n, err := strconv.Atoi(string(task.Payload()))
		if err != nil {
			return err
		}
		if ran[n].Add(1) == 1 && n%20 == 0 {
			return errors.New("the first try fails")
		}
		return nil
	})
	if err := server.Start(handle); err != nil {
		t.Fatal(err)
	}
	defer server.Shutdown()
	client := asynq.NewClient(opt)
	defer client.Close()
	for n := range tasks {
		var options []asynq.Option
		if n%10 == 0 {
			options = append(options, asynq.ProcessIn(200*time.Millisecond))
		}
		if _, err := client.Enqueue(asynq.NewTask("count", []byte(strconv.Itoa(n))), options...); err != nil {
			t.Fatal(err)
		}
	}
	unique := asynq.NewTask("count", []byte("0"), asynq.Unique(time.Minute), asynq.ProcessIn(time.Hour))
	if _, err := client.Enqueue(unique); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Enqueue(unique); !errors.Is(err, asynq.ErrDuplicateTask) {
		t.Errorf("a unique task twice: %v", err)
	}
	eventually.Nil(t, time.Minute, func() error {
		for n := range tasks {
			want := int64(1)
			if n%20 == 0 {
				want = 2
			}
			if got := ran[n].Load(); got != want {
				return fmt.Errorf("task %d ran %d times, want %d", n, got, want)
			}
		}
		return nil
	})
	inspector := asynq.NewInspector(opt)
	defer inspector.Close()
	eventually.Nil(t, time.Minute, func() error {
		q, err := inspector.GetQueueInfo("default")
		if err != nil {
			return err
		}
		if q.Processed != tasks+tasks/20 || q.Failed != tasks/20 || q.Scheduled != 1 || q.Pending+q.Active+q.Retry > 0 {
			return fmt.Errorf("%+v", q)
		}
		return nil
	})
}
