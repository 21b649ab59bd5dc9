// Package celery speaks enough of Celery's protocol 2 over kombu's Redis
// transport to enqueue and consume tasks with the same commands on the same keys:
// LPUSH to a list per queue and priority, one BRPOP over all of them, and the
// unacked hash and index in MULTI. Tasks are acknowledged before they run, as
// Dify configures it, so a killed worker loses what it had begun.
package celery

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
)

// prioritySteps are kombu's; step 0 has the queue's plain name.
const (
	separator  = "\x06\x16"
	unackedKey = "unacked"
	indexKey   = "unacked_index"
	mutexKey   = "unacked_mutex"
	// DefaultVisibility is how long an unacknowledged message stays hidden.
	DefaultVisibility = time.Hour
)

// Keys returns the lists of a queue, highest priority first.
func Keys(queue string) []string {
	return []string{queue, queue + separator + "3", queue + separator + "6", queue + separator + "9"}
}

type deliveryInfo struct {
	Exchange   string `json:"exchange"`
	RoutingKey string `json:"routing_key"`
}

type properties struct {
	CorrelationID string       `json:"correlation_id"`
	ReplyTo       string       `json:"reply_to"`
	DeliveryMode  int          `json:"delivery_mode"`
	DeliveryInfo  deliveryInfo `json:"delivery_info"`
	Priority      int          `json:"priority"`
	BodyEncoding  string       `json:"body_encoding"`
	DeliveryTag   string       `json:"delivery_tag"`
}

type message struct {
	Body            string         `json:"body"`
	ContentEncoding string         `json:"content-encoding"`
	ContentType     string         `json:"content-type"`
	Headers         map[string]any `json:"headers"`
	Properties      properties     `json:"properties"`
}

// Task is one call as it arrives.
type Task struct {
	// ID is Celery's task id.
	ID string
	// Name is the dotted name of the function.
	Name string
	// Args are the positional arguments.
	Args []json.RawMessage
	// Queue it came from.
	Queue string
	// Redelivered tells that it had been given to a consumer before.
	Redelivered bool
}

// Arg decodes the positional argument i into out.
func (t Task) Arg(i int, out any) error {
	if i >= len(t.Args) {
		return fmt.Errorf("task %s: argument %d is missing", t.Name, i)
	}
	if err := json.Unmarshal(t.Args[i], out); err != nil {
		return fmt.Errorf("task %s: argument %d: %w", t.Name, i, err)
	}
	return nil
}

// Encode returns the message of a call, and its task id.
func Encode(queue, name, origin string, args ...any) (msg []byte, id string, err error) {
	if args == nil {
		args = []any{}
	}
	body, err := json.Marshal([]any{args, map[string]any{}, map[string]any{
		"callbacks": nil, "errbacks": nil, "chain": nil, "chord": nil,
	}})
	if err != nil {
		return nil, "", fmt.Errorf("arguments of task %s: %w", name, err)
	}
	repr, err := json.Marshal(args)
	if err != nil {
		return nil, "", fmt.Errorf("arguments of task %s: %w", name, err)
	}
	id = uuid.NewString()
	msg, err = json.Marshal(message{
		Body: base64.StdEncoding.EncodeToString(body), ContentEncoding: "utf-8", ContentType: "application/json",
		Headers: map[string]any{
			"lang": "py", "task": name, "id": id, "shadow": nil, "eta": nil, "expires": nil,
			"group": nil, "group_index": nil, "retries": 0, "timelimit": []any{nil, nil},
			"root_id": id, "parent_id": nil, "argsrepr": string(repr), "kwargsrepr": "{}",
			"origin": origin, "ignore_result": false, "stamped_headers": nil, "stamps": map[string]any{},
		},
		Properties: properties{
			CorrelationID: id, ReplyTo: uuid.NewString(), DeliveryMode: 2,
			DeliveryInfo: deliveryInfo{RoutingKey: queue}, BodyEncoding: "base64", DeliveryTag: uuid.NewString(),
		},
	})
	if err != nil {
		return nil, "", fmt.Errorf("message of task %s: %w", name, err)
	}
	return msg, id, nil
}

// Decode reads a message; tag is its delivery tag.
func Decode(raw []byte) (t Task, tag string, err error) {
	var m message
	if err := json.Unmarshal(raw, &m); err != nil {
		return Task{}, "", fmt.Errorf("celery message: %w", err)
	}
	t.Name, _ = m.Headers["task"].(string)
	t.ID, _ = m.Headers["id"].(string)
	t.Queue = m.Properties.DeliveryInfo.RoutingKey
	t.Redelivered, _ = m.Headers["redelivered"].(bool)
	if t.Name == "" || t.ID == "" || m.Properties.DeliveryTag == "" {
		return Task{}, "", errors.New("celery message: task, id or delivery_tag is missing")
	}
	body := []byte(m.Body)
	if m.Properties.BodyEncoding == "base64" {
		if body, err = base64.StdEncoding.DecodeString(m.Body); err != nil {
			return Task{}, "", fmt.Errorf("celery message body: %w", err)
		}
	}
	var parts []json.RawMessage
	if err := json.Unmarshal(body, &parts); err != nil || len(parts) < 1 {
		return Task{}, "", errors.New("celery message body: want [args, kwargs, embed]")
	}
	if err := json.Unmarshal(parts[0], &t.Args); err != nil {
		return Task{}, "", fmt.Errorf("celery message arguments: %w", err)
	}
	return t, m.Properties.DeliveryTag, nil
}

// Producer enqueues tasks.
type Producer struct {
	rdb    redis.UniversalClient
	origin string
}

// NewProducer returns a producer; origin names this process in the messages.
func NewProducer(rdb redis.UniversalClient, origin string) *Producer {
	return &Producer{rdb: rdb, origin: origin}
}

// Delay enqueues a call, as task.delay(*args), and returns its task id.
func (p *Producer) Delay(ctx context.Context, queue, name string, args ...any) (string, error) {
	msg, id, err := Encode(queue, name, p.origin, args...)
	if err != nil {
		return "", err
	}
	if err := p.rdb.LPush(ctx, queue, msg).Err(); err != nil {
		return "", fmt.Errorf("enqueue %s: %w", name, err)
	}
	return id, nil
}

// Length returns how many messages wait in a queue, over its priorities.
func (p *Producer) Length(ctx context.Context, queue string) (int64, error) {
	cmds, err := p.rdb.TxPipelined(ctx, func(tx redis.Pipeliner) error {
		for _, k := range Keys(queue) {
			tx.LLen(ctx, k)
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("length of queue %s: %w", queue, err)
	}
	var n int64
	for _, c := range cmds {
		if l, ok := c.(*redis.IntCmd); ok {
			n += l.Val()
		}
	}
	return n, nil
}

// Consumer takes tasks from queues.
type Consumer struct {
	rdb    redis.UniversalClient
	queues []string
	keys   []string
	// Visibility is the time after which a message that was popped but never
	// acknowledged is put back; 0 means an hour.
	visibility time.Duration
}

// NewConsumer returns a consumer of the queues; earlier ones first.
func NewConsumer(rdb redis.UniversalClient, visibility time.Duration, queues ...string) *Consumer {
	if visibility == 0 {
		visibility = DefaultVisibility
	}
	c := &Consumer{rdb: rdb, queues: queues, visibility: visibility}
	for i := range Keys("") { // kombu orders by priority first, then by queue
		for _, q := range queues {
			c.keys = append(c.keys, Keys(q)[i])
		}
	}
	return c
}

// Bind declares the queues as kombu does when a consumer starts.
func (c *Consumer) Bind(ctx context.Context) error {
	for _, q := range c.queues {
		if err := c.rdb.SAdd(ctx, "_kombu.binding."+q, q+separator+separator+q).Err(); err != nil {
			return fmt.Errorf("declare queue %s: %w", q, err)
		}
	}
	return nil
}

// Next waits up to about a second for a task. It returns ok=false when there was
// none. The task is acknowledged when Next returns it.
func (c *Consumer) Next(ctx context.Context) (t Task, ok bool, err error) {
	popped, err := c.rdb.BRPop(ctx, time.Second, c.keys...).Result()
	if errors.Is(err, redis.Nil) {
		return Task{}, false, nil
	}
	if err != nil {
		return Task{}, false, fmt.Errorf("wait for tasks: %w", err)
	}
	queue, raw := popped[0], []byte(popped[1])
	t, tag, err := Decode(raw)
	if err != nil {
		return Task{}, false, err
	}
	// From here on the message is only in this process until it is noted.
	noted, err := json.Marshal([]any{json.RawMessage(raw), "", queue})
	if err != nil {
		return Task{}, false, fmt.Errorf("note task %s: %w", t.ID, err)
	}
	keep := context.WithoutCancel(ctx)
	if _, err := c.rdb.TxPipelined(keep, func(tx redis.Pipeliner) error {
		tx.ZAdd(keep, indexKey, redis.Z{Score: float64(time.Now().UnixNano()) / 1e9, Member: tag})
		tx.HSet(keep, unackedKey, tag, noted)
		return nil
	}); err != nil {
		return Task{}, false, fmt.Errorf("note task %s: %w", t.ID, err)
	}
	if _, err := c.rdb.TxPipelined(keep, func(tx redis.Pipeliner) error {
		tx.ZRem(keep, indexKey, tag)
		tx.HDel(keep, unackedKey, tag)
		return nil
	}); err != nil {
		return Task{}, false, fmt.Errorf("acknowledge task %s: %w", t.ID, err)
	}
	return t, true, nil
}

// Restore puts back messages that were popped longer than the visibility time
// ago and never acknowledged. One consumer at a time does it.
func (c *Consumer) Restore(ctx context.Context) (int, error) {
	got, err := c.rdb.SetNX(ctx, mutexKey, uuid.NewString(), 5*time.Minute).Result()
	if err != nil || !got {
		return 0, err
	}
	defer c.rdb.Del(context.WithoutCancel(ctx), mutexKey)
	limit := float64(time.Now().Add(-c.visibility).UnixNano()) / 1e9
	tags, err := c.rdb.ZRangeByScore(ctx, indexKey, &redis.ZRangeBy{
		Min: "-inf", Max: strconv.FormatFloat(limit, 'f', -1, 64), Count: 10,
	}).Result()
	if err != nil {
		return 0, fmt.Errorf("look for unacknowledged tasks: %w", err)
	}
	restored := 0
	for _, tag := range tags {
		noted, err := c.rdb.HGet(ctx, unackedKey, tag).Bytes()
		if err != nil && !errors.Is(err, redis.Nil) {
			return restored, fmt.Errorf("read unacknowledged task: %w", err)
		}
		queue, raw := redeliver(noted)
		if _, err := c.rdb.TxPipelined(ctx, func(tx redis.Pipeliner) error {
			tx.ZRem(ctx, indexKey, tag)
			tx.HDel(ctx, unackedKey, tag)
			if queue != "" {
				tx.RPush(ctx, queue, raw)
			}
			return nil
		}); err != nil {
			return restored, fmt.Errorf("put back unacknowledged task: %w", err)
		}
		if queue != "" {
			restored++
		}
	}
	return restored, nil
}

// redeliver reads a note and returns the queue and the message, marked; queue is
// empty when the note cannot be read.
func redeliver(noted []byte) (queue string, raw []byte) {
	var parts []json.RawMessage
	if json.Unmarshal(noted, &parts) != nil || len(parts) != 3 || json.Unmarshal(parts[2], &queue) != nil {
		return "", nil
	}
	var m message
	if json.Unmarshal(parts[0], &m) != nil || m.Headers == nil {
		return "", nil
	}
	m.Headers["redelivered"] = true
	raw, err := json.Marshal(m)
	if err != nil {
		return "", nil
	}
	return queue, raw
}
