package postgresdrill

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/jackc/pgx/v5"
)

// How many registers and lists the clients share. Few, so that they meet.
const (
	registers = 4
	lists     = 2
)

// historyPause is between two operations of a client.
const historyPause = 40 * time.Millisecond

// registerOp is one operation on a register. Values are written once only, so a
// value that is read tells whose it is.
type registerOp struct {
	client int
	key    int
	kind   registerKind
	value  int64 // written, or read
	old    int64 // what a compare-and-set compares with
	// swapped tells that a compare-and-set found what it expected.
	swapped   bool
	effect    effect
	call, ret time.Time
}

type registerKind int

const (
	readRegister registerKind = iota
	writeRegister
	swapRegister
)

func (l *load) registerClient(ctx context.Context, zone string, client int) {
	pool := &conns{c: l.c, zone: zone}
	defer pool.close()
	seen := make([]int64, registers+1) // what a compare-and-set may expect
	for n := int64(1); ctx.Err() == nil; n++ {
		op := registerOp{client: client, key: 1 + rand.N(registers), value: int64(client+1)<<32 | n, call: time.Now()}
		op.old = seen[op.key]
		switch draw := rand.N(10); {
		case draw < 5:
			op.kind = readRegister
		case draw < 8:
			op.kind = writeRegister
		default:
			op.kind = swapRegister
		}
		sent, err := l.client(ctx, pool, func(ctx context.Context, conn *pgx.Conn) error {
			switch op.kind {
			case readRegister:
				return conn.QueryRow(ctx, "SELECT value FROM register WHERE run = $1 AND key = $2", l.run, op.key).Scan(&op.value)
			case writeRegister:
				_, err := conn.Exec(ctx, "UPDATE register SET value = $3 WHERE run = $1 AND key = $2", l.run, op.key, op.value)
				return err
			}
			tag, err := conn.Exec(ctx, "UPDATE register SET value = $3 WHERE run = $1 AND key = $2 AND value = $4", l.run, op.key, op.value, op.old)
			op.swapped = err == nil && tag.RowsAffected() == 1
			return err
		})
		op.ret, op.effect = time.Now(), effectOf(err)
		if !sent || op.kind == readRegister && err != nil {
			op.effect = undone
		}
		if op.effect == done && op.kind == readRegister {
			seen[op.key] = op.value
		}
		l.mu.Lock()
		l.regs = append(l.regs, op)
		l.mu.Unlock()
		pause(ctx, historyPause)
	}
}

// registerModel is one register. Histories are split by key before.
var registerModel = porcupine.Model{
	Init: func() any { return int64(0) },
	Step: func(state, input, _ any) (bool, any) {
		op, now := input.(registerOp), state.(int64)
		switch op.kind {
		case readRegister:
			return now == op.value, now
		case writeRegister:
			return true, op.value
		}
		matches := now == op.old
		if op.effect == done && op.swapped != matches {
			return false, now
		}
		if matches {
			return true, op.value
		}
		return true, now
	},
}

// checkRegisters looks for an order of all operations on each register that
// agrees with what every client saw. Operations that were refused or rolled back
// must not have happened; those with an unknown end may have, at any time since.
func checkRegisters(ops []registerOp, limit time.Duration) (ok bool, detail string) {
	var unknowns int
	var end time.Time
	for _, op := range ops {
		if op.ret.After(end) {
			end = op.ret
		}
	}
	byKey := map[int][]porcupine.Operation{}
	for _, op := range ops {
		if op.effect == undone {
			continue
		}
		ret := op.ret.UnixNano()
		if op.effect == unknown {
			unknowns++
			ret = math.MaxInt64
		}
		byKey[op.key] = append(byKey[op.key], porcupine.Operation{ClientId: op.client, Input: op, Call: op.call.UnixNano(), Return: ret})
	}
	for key, history := range byKey {
		switch porcupine.CheckOperationsTimeout(registerModel, history, limit) {
		case porcupine.Illegal:
			return false, fmt.Sprintf("no order of the %d operations on register %d explains what clients saw", len(history), key)
		case porcupine.Unknown:
			return false, fmt.Sprintf("the check of the %d operations on register %d took over %v", len(history), key, limit)
		}
	}
	return true, fmt.Sprintf("%d operations on %d registers, %d with an unknown end", len(ops), len(byKey), unknowns)
}

// listOp appends a value to a list, or reads the list.
type listOp struct {
	key    int
	value  int64 // 0 for a read
	length int   // of the list after the append
	items  []int64
	effect effect
	call   time.Time
	ret    time.Time
}

func (l *load) listClient(ctx context.Context, zone string, client int) {
	pool := &conns{c: l.c, zone: zone, mode: modeSimple}
	defer pool.close()
	for n := int64(1); ctx.Err() == nil; n++ {
		op := listOp{key: 1 + rand.N(lists), call: time.Now()}
		if rand.N(3) > 0 {
			op.value = int64(client+1)<<32 | n
		}
		sent, err := l.client(ctx, pool, func(ctx context.Context, conn *pgx.Conn) error {
			if op.value == 0 {
				return conn.QueryRow(ctx, "SELECT items FROM list WHERE run = $1 AND key = $2", l.run, op.key).Scan(&op.items)
			}
			return conn.QueryRow(ctx, "UPDATE list SET items = items || $3::bigint WHERE run = $1 AND key = $2 RETURNING cardinality(items)",
				l.run, op.key, op.value).Scan(&op.length)
		})
		op.ret, op.effect = time.Now(), effectOf(err)
		if !sent || op.value == 0 && err != nil {
			op.effect = undone
		}
		l.mu.Lock()
		l.lists = append(l.lists, op)
		l.mu.Unlock()
		pause(ctx, historyPause)
	}
}

// checkLists holds every operation on a list against the list's final content:
// appended values stand where their client was told, once each, every read was a
// beginning of the final list, and nobody saw less than had been seen before.
func checkLists(ops []listOp, final map[int][]int64) (ok bool, detail string) {
	at := map[int64]int{} // value to its place from 1
	for key, items := range final {
		for i, v := range items {
			if at[v] != 0 {
				return false, fmt.Sprintf("list %d has %d twice", key, v)
			}
			at[v] = i + 1
		}
	}
	unknowns := 0
	for key := range final {
		var of []listOp
		for _, op := range ops {
			if op.key != key {
				continue
			}
			switch {
			case op.effect == undone && op.value != 0 && at[op.value] != 0:
				return false, fmt.Sprintf("list %d has %d, which was said to be rolled back", key, op.value)
			case op.effect == unknown:
				unknowns++
			case op.effect == done && op.value != 0 && at[op.value] != op.length:
				return false, fmt.Sprintf("list %d: the append of %d was acknowledged at place %d and is at %d (0: lost)", key, op.value, op.length, at[op.value])
			case op.effect == done && op.value == 0:
				op.length = len(op.items)
				if op.length > len(final[key]) || !slices.Equal(op.items, final[key][:op.length]) {
					return false, fmt.Sprintf("list %d: a read of %d values is not the beginning of the final list", key, op.length)
				}
			}
			if op.effect == done {
				of = append(of, op)
			}
		}
		if ok, detail := inOrder(key, of); !ok {
			return false, detail
		}
	}
	return true, fmt.Sprintf("%d operations on %d lists, %d with an unknown end", len(ops), len(final), unknowns)
}

// inOrder checks that an operation that began when others had ended saw them.
func inOrder(key int, ops []listOp) (ok bool, detail string) {
	ended := slices.SortedFunc(slices.Values(ops), func(a, b listOp) int { return a.ret.Compare(b.ret) })
	begun := slices.SortedFunc(slices.Values(ops), func(a, b listOp) int { return cmp.Or(a.call.Compare(b.call), a.ret.Compare(b.ret)) })
	longest, next := 0, 0
	for _, op := range begun {
		for ; next < len(ended) && ended[next].ret.Before(op.call); next++ {
			longest = max(longest, ended[next].length)
		}
		if op.length < longest || op.value != 0 && op.length == longest {
			return false, fmt.Sprintf("list %d: an operation saw %d values when %d had been seen before it began", key, op.length, longest)
		}
	}
	return true, ""
}
