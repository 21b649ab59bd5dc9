package jobs

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// queues is how many queues there are. An app's jobs are all in one of them: the
// workers go round the queues, so that an app that sends many jobs does not
// hold up those of apps in other queues, and the queues spread over the masters.
// The number is part of every job's id and cannot change while jobs exist.
const queues = 8

// idBytes of randomness make an id that cannot be guessed.
const idBytes = 20

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// newID returns "j", the queue, and 160 random bits.
func newID(queue int) string {
	var b [idBytes]byte
	_, _ = rand.Read(b[:]) // never fails
	return "j" + strconv.Itoa(queue) + idEncoding.EncodeToString(b[:])
}

// queueOf returns the queue of the job with that id; false when it is no id.
func queueOf(id string) (int, bool) {
	if len(id) != 2+idBytes*8/5 || id[0] != 'j' || id[1] < '0' || id[1] >= '0'+queues {
		return 0, false
	}
	for i := 2; i < len(id); i++ {
		if c := id[i]; (c < 'a' || c > 'z') && (c < '2' || c > '7') {
			return 0, false
		}
	}
	return int(id[1] - '0'), true
}

// appHash is what is kept of an app's key, to tell whether a caller is the same.
func appHash(key string) string {
	sum := sha256.Sum256([]byte("fournines jobs app\x00" + key))
	return hex.EncodeToString(sum[:])
}

// queueFor returns the queue of the app with that hash.
func queueFor(app string) int {
	n, _ := strconv.ParseUint(app[:8], 16, 32)
	return int(n % queues)
}

func queueName(queue int) string { return "jobs-" + strconv.Itoa(queue) }

func keyPrefix(queue int) string { return "fournines:gw:jobs:{" + queueName(queue) + "}:" }

func jobPrefix(queue int) string { return keyPrefix(queue) + "job:" }

func eventsKey(queue int, id string) string { return keyPrefix(queue) + "events:" + id }

// keys lists the keys of scriptHead. idem is the idempotency key's digest or "".
func keys(queue int, id, idem string) []string {
	p := keyPrefix(queue)
	return []string{
		p + "job:" + id, p + "events:" + id, p + "queued", p + "running", p + "dead",
		p + "hooks", p + "hooksdead", p + "index", p + "live", p + "idem:" + idem, p + "sizes",
	}
}

// State is where a job stands.
type State string

// The states.
const (
	Queued    State = "queued"
	Running   State = "running"
	Succeeded State = "succeeded"
	Failed    State = "failed"
	Canceled  State = "canceled"
)

func (s State) final() bool { return s == Succeeded || s == Failed || s == Canceled }

// Why a job failed.
const (
	reasonRejected = "rejected" // Dify said no
	reasonLost     = "lost"     // it may have been carried out, and nobody allowed to repeat it
	reasonExpired  = "expired"  // it was refused or waited until its time was up; not carried out
	reasonInternal = "internal" // its record cannot be read
)

// record is a job as Redis has it.
type record struct {
	id    string
	queue int

	state                                     State
	gen                                       int64
	token, owner                              string
	app, appID, class, path, requestID, print string
	created, since, started, finished         time.Time
	runs, lost, refused                       int
	repeat, cancel                            bool
	status                                    int
	code, message, reason                     string
	request, result                           []byte // sealed
	hook                                      []byte // sealed
	hookState, hookError                      string
	hookTries                                 int
}

func parseRecord(queue int, id string, m map[string]string) (*record, error) {
	if m["state"] == "" {
		return nil, fmt.Errorf("job %s: the record has no state", id)
	}
	number := func(field string) int64 {
		n, _ := strconv.ParseInt(m[field], 10, 64) // what our own scripts wrote, or absent
		return n
	}
	when := func(field string) time.Time {
		if ms := number(field); ms > 0 {
			return time.UnixMilli(ms)
		}
		return time.Time{}
	}
	return &record{
		id: id, queue: queue, state: State(m["state"]), gen: number("gen"), token: m["token"], owner: m["owner"],
		app: m["app"], appID: m["appid"], class: m["class"], path: m["path"], requestID: m["requestid"], print: m["print"],
		created: when("created"), since: when("since"), started: when("started"), finished: when("finished"),
		runs: int(number("runs")), lost: int(number("lost")), refused: int(number("refused")),
		repeat: m["repeat"] == "1", cancel: m["cancel"] == "1",
		status: int(number("status")), code: m["code"], message: m["error"], reason: m["reason"],
		request: []byte(m["req"]), result: []byte(m["result"]), hook: []byte(m["hook"]),
		hookState: m["hookstate"], hookError: m["hookerr"], hookTries: int(number("hooktries")),
	}, nil
}

// delivery is what asynq carries: which job, and which of its deliveries. The
// record decides what it is worth.
func delivery(id string, gen int64) string { return id + "." + strconv.FormatInt(gen, 10) }

func parseDelivery(s string) (id string, gen int64, ok bool) {
	id, n, ok := strings.Cut(s, ".")
	if !ok {
		return "", 0, false
	}
	gen, err := strconv.ParseInt(n, 10, 64)
	return id, gen, err == nil
}
