package limit

import (
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestParseRate(t *testing.T) {
	for text, want := range map[string]Rate{
		"100 per minute":  {100, time.Minute},
		"100 per second":  {100, time.Second},
		"1.5 per second":  {1.5, time.Second},
		"60000 per hour":  {60000, time.Hour},
		"1 per day":       {1, 24 * time.Hour},
		"100/m":           {100, time.Minute},
		"100 / minute":    {100, time.Minute},
		" 7 per  hour ":   {7, time.Hour},
		"1000000/s":       {1e6, time.Second},
		"1e3 per minute":  {},
		"100000 per day ": {100000, 24 * time.Hour},
	} {
		got, err := ParseRate(text)
		if want == (Rate{}) {
			if err == nil {
				t.Errorf("%q is read as %v", text, got)
			}
			continue
		}
		if err != nil || got != want {
			t.Errorf("%q: got %v, %v", text, got, err)
			continue
		}
		if again, err := ParseRate(got.String()); err != nil || again != got {
			t.Errorf("%q prints as %q, which reads as %v, %v", text, got, again, err)
		}
	}
	for text, why := range map[string]string{
		"100":                                `write "100 per minute" or "100 per second", which is 60 times as much`,
		"":                                   "is no rate",
		"100 QPS":                            "is no rate",
		"100 per fortnight":                  "none of second, minute, hour and day",
		"-1 per second":                      "not a plain number",
		"NaN per second":                     "not a plain number",
		"per second":                         "is no rate",
		" per second":                        "not a plain number",
		"0 per second":                       "less than 1 per day",
		"0.5/d":                              "less than 1 per day",
		"1000001/s":                          "more than 1000000 per second",
		"1.2.3 per hour":                     "not a plain number",
		strings.Repeat("1", 80) + " per day": "too long",
	} {
		if got, err := ParseRate(text); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: got %v, %v, want %q", text, got, err, why)
		}
	}
}

func TestARateSaysBothForms(t *testing.T) {
	for text, want := range map[string]string{
		"100 per minute": "1.667 per second = 100 per minute",
		"100 per second": "100 per second = 6000 per minute",
		"60000 per hour": "16.67 per second = 1000 per minute",
	} {
		r, err := ParseRate(text)
		if err != nil || r.Both() != want {
			t.Errorf("%s: %q, %v", text, r.Both(), err)
		}
	}
}

func TestDefaultBurstIsATenth(t *testing.T) {
	for text, want := range map[string]float64{"100 per minute": 10, "100 per second": 10, "5 per minute": 1, "1000 per day": 100} {
		r, err := ParseRate(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := (&Limit{Rate: r}).burst(); got != want {
			t.Errorf("%s: burst %v, want %v", text, got, want)
		}
	}
}

func FuzzParseRate(f *testing.F) {
	for _, s := range []string{"100 per minute", "1.5/s", "100", "/", " per ", "1 per second per hour", "99999999999999999999/d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRate(s)
		if err != nil {
			return
		}
		if !(r.PerSecond() > 0 && r.PerSecond() <= maxPerSecond) {
			t.Fatalf("%q is %v", s, r)
		}
		again, err := ParseRate(r.String())
		if err != nil && len(r.String()) <= maxRateLength || err == nil && again != r {
			t.Fatalf("%q prints as %q, which reads as %v, %v", s, r, again, err)
		}
		if rule := newRuleForTest(Limit{Name: "x", Rate: r, By: ByAll}); rule.scale <= 0 || rule.tolerance < 0 || rule.burst < 1 || math.IsInf(rule.period, 0) {
			t.Fatalf("%q: %+v", s, rule)
		}
	})
}

func TestValidate(t *testing.T) {
	good := Limit{Name: "per-app", Rate: Rate{100, time.Minute}, By: ByApp}
	with := func(change func(*Limit)) []Limit {
		l := good
		change(&l)
		return []Limit{l}
	}
	for _, tc := range []struct {
		name   string
		limits []Limit
		want   string
	}{
		{"good", []Limit{good}, ""},
		{"all of it", with(func(l *Limit) {
			l.Burst, l.Unit, l.Match = 10, Tokens, Match{Apps: []string{"support", "0123456789ab"}, Classes: []string{"chat"}, PathPrefix: "/v1/"}
		}), ""},
		{"twice", []Limit{good, good}, `rateLimits[1].name: "per-app" is already the name of rateLimits[0]`},
		{"name", with(func(l *Limit) { l.Name = "a{b}" }), "rateLimits[0].name"},
		{"no rate", with(func(l *Limit) { l.Rate = Rate{} }), "rateLimits[0].rate: a rate is needed"},
		{"burst", with(func(l *Limit) { l.Burst = -1 }), "rateLimits[0].burst: -1"},
		{"a burst of years", with(func(l *Limit) { l.Rate, l.Burst = Rate{1, day}, 1000 }), "more than a year's worth"},
		{"by", with(func(l *Limit) { l.By = "" }), `rateLimits[0].by: "" is none of app, user`},
		{"unit", with(func(l *Limit) { l.Unit = "bytes" }), `rateLimits[0].unit: "bytes"`},
		{"class", with(func(l *Limit) { l.Match.Classes = []string{"chats"} }), `rateLimits[0].match.classes[0]: "chats" is none of`},
		{"app", with(func(l *Limit) { l.Match.Apps = []string{"app-secret/1"} }), "rateLimits[0].match.apps[0]: not the name"},
		{"prefix", with(func(l *Limit) { l.Match.PathPrefix = "v1" }), "rateLimits[0].match.pathPrefix"},
		{"many", make([]Limit, MaxLimits+1), "at most 64"},
	} {
		var said []string
		Validate(tc.limits, []string{"chat", "read"}, func(field, format string, args ...any) {
			said = append(said, field+": "+fmt.Sprintf(format, args...))
		})
		all := strings.Join(said, "\n")
		if (tc.want == "") != (all == "") || !strings.Contains(all, tc.want) {
			t.Errorf("%s: got %q, want %q", tc.name, all, tc.want)
		}
		if strings.Contains(all, "app-secret") {
			t.Errorf("%s: the message shows what may be a key: %s", tc.name, all)
		}
	}
}

func proxies(tb testing.TB, list ...string) Proxies {
	tb.Helper()
	return ParseProxies(list, func(field, format string, args ...any) { tb.Fatalf(field+": "+format, args...) })
}

func TestClientAddress(t *testing.T) {
	ours := proxies(t, "10.0.0.0/8", "2001:db8:ffff::/48", "192.0.2.7")
	for _, tc := range []struct {
		name, remote string
		forwarded    []string
		proxies      Proxies
		want         string
	}{
		{"plain", "203.0.113.9:5555", nil, ours, "203.0.113.9"},
		{"nobody is trusted", "10.1.2.3:1", []string{"203.0.113.9"}, nil, "10.1.2.3"},
		{"not from a proxy", "203.0.113.9:1", []string{"198.51.100.1"}, ours, "203.0.113.9"},
		{"from a proxy", "10.1.2.3:1", []string{"203.0.113.9"}, ours, "203.0.113.9"},
		{"through two", "10.1.2.3:1", []string{"203.0.113.9, 192.0.2.7"}, ours, "203.0.113.9"},
		{"made up in front", "10.1.2.3:1", []string{"1.1.1.1, 203.0.113.9, 10.9.9.9"}, ours, "203.0.113.9"},
		{"several lines", "10.1.2.3:1", []string{"1.1.1.1", "203.0.113.9,10.9.9.9"}, ours, "203.0.113.9"},
		{"all trusted", "10.1.2.3:1", []string{"10.0.0.1, 10.0.0.2"}, ours, "10.0.0.1"},
		{"nonsense", "10.1.2.3:1", []string{"unknown"}, ours, "10.1.2.3"},
		{"nonsense behind a proxy", "10.1.2.3:1", []string{"x, 10.0.0.2"}, ours, "10.0.0.2"},
		{"empty", "10.1.2.3:1", []string{""}, ours, "10.1.2.3"},
		{"with a port", "10.1.2.3:1", []string{"203.0.113.9:443"}, ours, "203.0.113.9"},
		{"version 6", "[2001:db8:ffff::1]:1", []string{"[2001:db8:1::5]:443"}, ours, "2001:db8:1::5"},
		{"4 in 6", "[::ffff:10.1.2.3]:1", []string{"::ffff:203.0.113.9"}, ours, "203.0.113.9"},
		{"a zone", "[fe80::1%eth0]:1", nil, ours, "fe80::1"},
		{"no address", "@", []string{"203.0.113.9"}, ours, "invalid IP"},
	} {
		if got := tc.proxies.Client(tc.remote, tc.forwarded).String(); got != tc.want {
			t.Errorf("%s: got %s, want %s", tc.name, got, tc.want)
		}
	}
}

func TestNetworkOfAnAddress(t *testing.T) {
	for in, want := range map[string]string{
		"203.0.113.9": "203.0.113.9", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64", "::1": "::/64",
	} {
		if got := Network(netip.MustParseAddr(in)); got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
	if got := Network(netip.Addr{}); got != "" {
		t.Errorf("no address: %q", got)
	}
}

func TestTrustedProxiesAreNetworks(t *testing.T) {
	var said []string
	got := ParseProxies([]string{"10.0.0.0/8", "nonsense", "::1"}, func(field, _ string, _ ...any) { said = append(said, field) })
	if len(got) != 2 || len(said) != 1 || said[0] != "trustedProxies[1]" {
		t.Errorf("got %v, %v", got, said)
	}
}

func FuzzClientAddress(f *testing.F) {
	f.Add("10.0.0.1:1", "203.0.113.9, 10.0.0.2", "1.1.1.1")
	f.Add("[::1]:1", "[::1]:2,::1%a", ",,,")
	ours := proxies(f, "10.0.0.0/8", "::1/128")
	f.Fuzz(func(t *testing.T, remote, one, two string) {
		got := ours.Client(remote, []string{one, two})
		direct := hop(remote)
		if !ours.trust(direct) && got != direct {
			t.Fatalf("%q %q %q: believed %s of somebody who is not trusted", remote, one, two, got)
		}
		if network := Network(got); strings.ContainsAny(network, "{} \r\n%") {
			t.Fatalf("%q cannot be a part of a key", network)
		}
	})
}
