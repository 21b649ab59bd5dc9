package postgresdrill

import (
	"strings"
	"testing"
	"time"
)

// at is a moment of a history that was made up.
func at(second int) time.Time { return time.Unix(1_700_000_000+int64(second), 0) }

func TestCheckRegisters(t *testing.T) {
	write := func(client int, value int64, call, ret int, e effect) registerOp {
		return registerOp{client: client, key: 1, kind: writeRegister, value: value, effect: e, call: at(call), ret: at(ret)}
	}
	read := func(client int, value int64, call, ret int) registerOp {
		return registerOp{client: client, key: 1, kind: readRegister, value: value, call: at(call), ret: at(ret)}
	}
	swap := func(client int, old, value int64, swapped bool, call, ret int, e effect) registerOp {
		return registerOp{client: client, key: 1, kind: swapRegister, old: old, value: value, swapped: swapped, effect: e, call: at(call), ret: at(ret)}
	}
	for _, tt := range []struct {
		name string
		ops  []registerOp
		want string // in the detail; empty when the history is right
	}{
		{"one after the other", []registerOp{write(1, 11, 0, 1, done), read(2, 11, 2, 3)}, ""},
		{"a read of the past", []registerOp{write(1, 11, 0, 1, done), write(1, 12, 2, 3, done), read(2, 11, 4, 5)}, "no order"},
		{"an acknowledged write is lost", []registerOp{write(1, 11, 0, 1, done), read(2, 0, 2, 3)}, "no order"},
		{"two at once", []registerOp{write(1, 11, 0, 5, done), read(2, 0, 1, 2), read(2, 11, 3, 4)}, ""},
		{"two primaries", []registerOp{write(1, 11, 0, 1, done), write(2, 12, 0, 1, done), read(1, 11, 2, 3), read(2, 12, 2, 3), read(1, 11, 4, 5)}, "no order"},
		{"an unknown write that happened", []registerOp{write(1, 11, 0, 1, unknown), read(2, 0, 2, 3), read(2, 11, 4, 5)}, ""},
		{"an unknown write that did not", []registerOp{write(1, 11, 0, 1, unknown), read(2, 0, 2, 3)}, ""},
		{"an unknown write that came and went", []registerOp{write(1, 11, 0, 1, unknown), read(2, 11, 2, 3), read(2, 0, 4, 5)}, "no order"},
		{"a refused write that happened", []registerOp{write(1, 11, 0, 1, undone), read(2, 11, 2, 3)}, "no order"},
		{"a swap", []registerOp{write(1, 11, 0, 1, done), swap(2, 11, 12, true, 2, 3, done), read(1, 12, 4, 5)}, ""},
		{"a swap that was refused its value", []registerOp{write(1, 11, 0, 1, done), swap(2, 11, 12, false, 2, 3, done)}, "no order"},
		{"a swap twice", []registerOp{swap(1, 0, 11, true, 0, 1, done), swap(2, 0, 12, true, 2, 3, done)}, "no order"},
		{"an unknown swap", []registerOp{swap(1, 0, 11, false, 0, 1, unknown), read(2, 11, 2, 3)}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ok, detail := checkRegisters(tt.ops, time.Minute)
			if ok != (tt.want == "") || !strings.Contains(detail, tt.want) {
				t.Errorf("%t: %s; want %q", ok, detail, tt.want)
			}
		})
	}
}

func TestCheckLists(t *testing.T) {
	push := func(value int64, length, call, ret int, e effect) listOp {
		return listOp{key: 1, value: value, length: length, effect: e, call: at(call), ret: at(ret)}
	}
	read := func(call, ret int, items ...int64) listOp {
		return listOp{key: 1, items: items, call: at(call), ret: at(ret)}
	}
	for _, tt := range []struct {
		name  string
		ops   []listOp
		final []int64
		want  string
	}{
		{"right", []listOp{push(11, 1, 0, 1, done), push(12, 2, 2, 3, done), read(4, 5, 11, 12)}, []int64{11, 12}, ""},
		{"lost", []listOp{push(11, 1, 0, 1, done)}, nil, "(0: lost)"},
		{"twice", []listOp{push(11, 1, 0, 1, done)}, []int64{11, 11}, "has 11 twice"},
		{"elsewhere", []listOp{push(11, 1, 0, 1, done)}, []int64{12, 11}, "acknowledged at place 1 and is at 2"},
		{"another history", []listOp{push(11, 1, 0, 1, unknown), read(2, 3, 11)}, []int64{12}, "not the beginning"},
		{"a read of the past", []listOp{push(11, 1, 0, 1, done), read(2, 3)}, []int64{11}, "saw 0 values when 1"},
		{"a read at the same time", []listOp{push(11, 1, 0, 3, done), read(1, 2)}, []int64{11}, ""},
		{"reads that go back", []listOp{push(11, 1, 0, 9, done), read(1, 2, 11), read(3, 4)}, []int64{11}, "saw 0 values when 1"},
		{"rolled back and there", []listOp{push(11, 0, 0, 1, undone)}, []int64{11}, "said to be rolled back"},
		{"unknown and there", []listOp{push(11, 0, 0, 1, unknown)}, []int64{11}, ""},
		{"unknown and not there", []listOp{push(11, 0, 0, 1, unknown)}, nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ok, detail := checkLists(tt.ops, map[int][]int64{1: tt.final})
			if ok != (tt.want == "") || !strings.Contains(detail, tt.want) {
				t.Errorf("%t: %s; want %q", ok, detail, tt.want)
			}
		})
	}
}

func TestLongestGap(t *testing.T) {
	for _, tt := range []struct {
		name   string
		events []int
		want   int
	}{
		{"none", nil, 100},
		{"before the fault only", []int{-5, -1}, 100},
		{"in the middle", []int{1, 30, 99}, 69},
		{"from the fault on", []int{-1, 60, 80}, 60},
		{"to the end", []int{10, 20}, 80},
		{"in any order", []int{90, 10, 50}, 40},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var events []time.Time
			for _, s := range tt.events {
				events = append(events, at(s))
			}
			if got := longestGap(events, at(0), at(100)); got != time.Duration(tt.want)*time.Second {
				t.Errorf("%v, want %d s", got, tt.want)
			}
		})
	}
}
