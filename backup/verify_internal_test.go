package backup

import (
	"slices"
	"testing"
)

func TestMissingFrom(t *testing.T) {
	const (
		t1 = "00000001000000000000000"
		t2 = "00000002000000000000000"
		t3 = "00000003000000000000000"
	)
	for _, tt := range []struct {
		name, begin string
		have, want  []string
	}{
		{"whole", t1 + "2", []string{t1 + "1", t1 + "2", t1 + "3"}, nil},
		{"a hole", t1 + "2", []string{t1 + "2", t1 + "4", t1 + "5"}, []string{t1 + "3"}},
		{"the first", t1 + "2", []string{t1 + "3"}, []string{t1 + "2"}},
		{"nothing", t1 + "2", nil, []string{t1 + "2"}},
		{"older ones do not matter", t1 + "5", []string{t1 + "1", t1 + "5"}, nil},
		{"a new timeline takes over in its first segment", t1 + "2", []string{t1 + "2", t1 + "3", t2 + "4", t2 + "5"}, nil},
		{"and the lost primary went on", t1 + "2", []string{t1 + "2", t1 + "3", t1 + "4", t1 + "5", t1 + "6", t2 + "4", t2 + "5"}, nil},
		{"a hole before the switch", t1 + "2", []string{t1 + "2", t2 + "4"}, []string{t1 + "3"}},
		{"a hole after the switch", t1 + "2", []string{t1 + "2", t2 + "3", t2 + "5"}, []string{t2 + "4"}},
		{"a branch that was left", t1 + "2", []string{t1 + "2", t1 + "3", t2 + "4", t2 + "5", t2 + "6", t3 + "4"}, nil},
		{"into the next log", "0000000100000000000000FF", []string{"0000000100000000000000FF", "000000010000000100000001"}, []string{"000000010000000100000000"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			have := archived{}
			for _, name := range tt.have {
				s, ok := parseSegment(name)
				if !ok {
					t.Fatalf("%s is no segment", name)
				}
				have[s] = true
			}
			begin, ok := parseSegment(tt.begin)
			if !ok {
				t.Fatalf("%s is no segment", tt.begin)
			}
			var got []string
			for _, s := range missingFrom(begin, have) {
				got = append(got, s.String())
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestParseSegmentRefuses(t *testing.T) {
	for _, name := range []string{"", "00000001000000000000000", "0000000100000000000001FF", "00000002.history", "00000001000000000000000g"} {
		if s, ok := parseSegment(name); ok {
			t.Errorf("%q is taken for %v", name, s)
		}
	}
}

func TestCopyMayHave(t *testing.T) {
	for _, tt := range []struct {
		before, after int64
		quiet         bool
		low, high     int64
	}{
		{10, 10, true, 10, 10},
		{10, 12, false, -991, 1013},
		{200000, 100000, false, 79000, 221000},
	} {
		if low, high := between(tt.before, tt.after, tt.quiet); low != tt.low || high != tt.high {
			t.Errorf("%+v: %d to %d", tt, low, high)
		}
	}
}

func TestArchiveCommandIsSafeForTheShell(t *testing.T) {
	got := ArchiveCommand("/opt/four nines/100%/it's", "/etc/b.yaml")
	want := `'/opt/four nines/100%%/it'\''s' backup archive-push --config /etc/b.yaml %p # pgbackrest`
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestFirstError(t *testing.T) {
	for _, tt := range []struct{ stderr, want string }{
		{"", ""},
		{"WARN: something\nERROR: [041]: unable to open\n       HINT: do this\n", "unable to open"},
		{"ERROR: [026]: raised from local-1 protocol: error restoring 'x'\n       [ChecksumError] on retry\n", "error restoring 'x'"},
		{"ERROR: [055]: a:\n       b\x01c\n", "a: b c"},
	} {
		if got := firstError(tt.stderr); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.stderr, got, tt.want)
		}
	}
}
