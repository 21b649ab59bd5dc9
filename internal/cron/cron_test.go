package cron_test

import (
	"strings"
	"testing"
	"time"

	"fournines/internal/cron"
)

func TestNext(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, schedule string
		zone           *time.Location
		from, want     string
	}{
		{"daily, later today", "0 2 * * *", time.UTC, "2026-11-29 01:59:59", "2026-11-29 02:00:00"},
		{"daily, exactly then is over", "0 2 * * *", time.UTC, "2026-11-29 02:00:00", "2026-11-30 02:00:00"},
		{"every quarter", "*/15 * * * *", time.UTC, "2026-12-31 23:45:00", "2027-01-01 00:00:00"},
		{"from five on", "5/20 * * * *", time.UTC, "2026-12-31 23:45:01", "2027-01-01 00:05:00"},
		{"list and range", "0,30 9-10 * * *", time.UTC, "2026-11-29 09:31:00", "2026-11-29 10:00:00"},
		{"Sunday as 7", "0 4 * * 7", time.UTC, "2026-11-30 00:00:00", "2026-12-06 04:00:00"},
		{"Sunday as 0", "0 4 * * 0", time.UTC, "2026-11-30 00:00:00", "2026-12-06 04:00:00"},
		{"day or weekday when both are given", "0 0 13 * 5", time.UTC, "2026-11-12 12:00:00", "2026-11-13 00:00:00"},
		{"and the other of them", "0 0 13 * 5", time.UTC, "2026-11-13 12:00:00", "2026-11-20 00:00:00"},
		{"weekday within a month", "0 0 * 2 1", time.UTC, "2026-11-29 00:00:00", "2027-02-01 00:00:00"},
		{"leap day", "0 0 29 2 *", time.UTC, "2026-11-29 00:00:00", "2028-02-29 00:00:00"},
		{"never", "0 0 31 2 *", time.UTC, "2026-11-29 00:00:00", ""},
		{"an hour that the clock skips", "30 2 * * *", berlin, "2027-03-28 00:00:00", "2027-03-29 02:30:00"},
		{"a half zone", "0 2 * * *", time.FixedZone("", 19800), "2026-11-29 01:00:00", "2026-11-29 02:00:00"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := cron.Parse(tt.schedule)
			if err != nil {
				t.Fatal(err)
			}
			from, err := time.ParseInLocation(time.DateTime, tt.from, tt.zone)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if next := s.Next(from); !next.IsZero() {
				got = next.Format(time.DateTime)
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestParseNamesTheField(t *testing.T) {
	for _, tt := range []struct{ schedule, want string }{
		{"", "has 0 fields, want 5"},
		{"0 2 * *", "has 4 fields"},
		{"60 2 * * *", `minute "60" is not within 0 to 59`},
		{"0 24 * * *", `hour "24"`},
		{"0 2 0 * *", `day "0"`},
		{"0 2 * 13 *", `month "13"`},
		{"0 2 * * 8", `weekday "8"`},
		{"0 5-2 * * *", `hour "5-2"`},
		{"*/0 2 * * *", `minute "*/0" has a wrong step`},
		{"*/x 2 * * *", "wrong step"},
		{"a 2 * * *", `minute "a"`},
		{", 2 * * *", `minute ""`},
	} {
		if _, err := cron.Parse(tt.schedule); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: error %v, want one with %q", tt.schedule, err, tt.want)
		}
	}
	// A step beyond the range is legal and means its first value only.
	s, err := cron.Parse("0/9999999999 0 * * *")
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	if got, want := s.Next(at), at.AddDate(0, 0, 1); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestTheZeroScheduleIsNeverDue(t *testing.T) {
	if got := (cron.Schedule{}).Next(time.Now()); !got.IsZero() {
		t.Errorf("got %v, want never", got)
	}
}
