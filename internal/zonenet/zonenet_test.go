package zonenet

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestConfigValidateReportsEverything(t *testing.T) {
	cfg := Config{
		ID: "Too-Long-ID", Mode: "vlan", Zones: []string{"a", "a", "B c"},
		HostNumbers: []int{0}, ZoneNumbers: map[string][]int{"a": {255}, "z": {1}}, Delay: time.Minute,
	}
	err := cfg.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		`id "Too-Long-ID"`, `mode "vlan"`, `"a" is listed twice`, `name "B c"`, "hostNumbers: 0",
		"zoneNumbers.a: 255", `zoneNumbers: unknown zone "z"`, "delay 1m0s",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q:\n%v", want, err)
		}
	}
}

func TestLoopbackNetwork(t *testing.T) {
	n, err := New(Config{ID: "x", Mode: Loopback, Zones: []string{"a", "b"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Address("a", 5); err == nil {
		t.Error("an address before the subnet is known")
	}
	if err := n.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	p, err := netip.ParsePrefix(n.Subnet())
	if err != nil || p.Bits() != 16 || p.Addr().As4()[0] != 127 || p.Addr().As4()[1] == 0 {
		t.Fatalf("subnet %q", n.Subnet())
	}
	addr, err := n.Address("b", 20)
	if err != nil || !strings.HasSuffix(addr, ".2.20") || !strings.HasPrefix(addr, "127.") {
		t.Errorf("address of b = %q, %v", addr, err)
	}
	if err := n.Cut("a"); err == nil || !strings.Contains(err.Error(), "needs network namespaces (run as root)") {
		t.Errorf("Cut = %v", err)
	}
	if err := n.Cut("q"); err == nil || !strings.Contains(err.Error(), "the zones are a, b") {
		t.Errorf("Cut of an unknown zone = %v", err)
	}
	if s, err := n.LinkState("a"); err != nil || s != LinkUp {
		t.Errorf("LinkState = %q, %v", s, err)
	}
	if shaper, why := n.Shaper(); shaper != NoShaper || why == "" {
		t.Errorf("Shaper = %v, %q", shaper, why)
	}
	if err := n.SetLinks(t.Context(), n.DefaultLinks()); err == nil {
		t.Error("SetLinks works on loopback addresses")
	}
	if err := n.Delete(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestSubnetConfigured(t *testing.T) {
	for _, tt := range []struct{ subnet, want string }{
		{"127.77.0.0/16", ""},
		{"127.0.0.0/16", "N from 1 to 254"},
		{"10.77.0.0/16", "127.N.0.0/16"},
		{"127.77.1.0/16", "127.N.0.0/16"},
		{"127.77.0.0/24", "127.N.0.0/16"},
		{"nonsense", "127.N.0.0/16"},
	} {
		n, err := New(Config{ID: "x", Mode: Loopback, Zones: []string{"a"}, Subnet: tt.subnet}, nil)
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s: %v", tt.subnet, err)
		case tt.want == "" && n.Subnet() != tt.subnet:
			t.Errorf("%s: got %s", tt.subnet, n.Subnet())
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: error %v, want %q", tt.subnet, err, tt.want)
		}
	}
}

func TestChooseNumberAvoidsWhatIsUsed(t *testing.T) {
	first := candidates("demo")[0]
	used := []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(first), 3, 0}), 24)}
	got, within, err := chooseNumber("demo", 10, used)
	if err != nil || got == first || within.IsValid() {
		t.Errorf("got %d within %v, %v", got, within, err)
	}
	used = append(used, netip.MustParsePrefix("10.0.0.0/8"))
	got, within, err = chooseNumber("demo", 10, used)
	if err != nil || got == first || within != netip.MustParsePrefix("10.0.0.0/8") {
		t.Errorf("inside of a wide route: got %d within %v, %v", got, within, err)
	}
	used = nil
	for x := range 256 {
		used = append(used, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(x)}), 16))
	}
	if _, _, err := chooseNumber("demo", 10, used); err == nil || !strings.Contains(err.Error(), "no free range") {
		t.Errorf("all used: %v", err)
	}
	seen := map[int]bool{}
	for _, x := range candidates("demo") {
		seen[x] = true
	}
	if len(seen) != 254 {
		t.Errorf("%d candidates, want 254", len(seen))
	}
}

func TestListeningRanges(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue
   0: 0100007F:1F90 00000000:0000 0A 00000000
   1: 14014D7F:1F90 00000000:0000 0A 00000000
   2: 14014E7F:1F90 00000000:0000 01 00000000
garbage`
	want := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/16"), netip.MustParsePrefix("127.77.0.0/16")}
	if diff := cmp.Diff(want, listeningRanges([]byte(table)), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

func TestLinksValidate(t *testing.T) {
	zones := []string{"a", "b"}
	ok := UniformLinks(zones, 30*time.Millisecond)
	if err := ok.Validate(zones); err != nil {
		t.Error(err)
	}
	if got := time.Duration(ok.Get("a", "b").Delay); got != 15*time.Millisecond {
		t.Errorf("half of the round trip = %v", got)
	}
	bad := Links{
		"a": {"a": {}, "q": {}, "b": {Delay: -1, Jitter: Duration(time.Hour), Loss: 1.5, Rate: -1}},
		"x": {"a": {}},
	}
	err := bad.Validate(zones)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"links.a.a: a zone has no link", `links.a.q: unknown zone "q"`, "links.a.b.delay", "links.a.b.jitter", "links.a.b.loss 1.5", "links.a.b.rate -1", `links.x.a: unknown zone "x"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q:\n%v", want, err)
		}
	}
}

func TestForwarderConfigValidate(t *testing.T) {
	cfg := ForwarderConfig{
		Hub: "hub", MTU: 1, Control: strings.Repeat("x", 200),
		Zones: []ForwarderZone{
			{Name: "a", Namespace: "ns-a", Subnet: "10.7.1.0/24", Source: "10.7.2.1"},
			{Name: "a", Namespace: "../etc", Subnet: "10.7.1.0/25", Source: "10.7.1.1", Port: "z2"},
			{Subnet: "fe80::/64"},
		},
	}
	err := cfg.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"zones[0].source", "zones[0].port is missing", "zones[1].namespace", "zones[1].subnet 10.7.1.0/25 overlaps", `"a" is there twice`,
		"zones[2].name is missing", "zones[2].subnet", "mtu 1", "control",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q:\n%v", want, err)
		}
	}
}
