package gateway

import (
	"fmt"
	"strings"
	"testing"

	"fournines/gateway/dify"
)

func TestAppsAreFoundByTheirKeys(t *testing.T) {
	mine, other := dify.KeyID("app-mine"), dify.KeyID("app-other")
	table := newAppTable([]App{{Name: "support", KeyIDs: []string{mine}}})
	if got := table.find(mine); got != (app{id: "support", named: true}) {
		t.Errorf("configured key: %+v", got)
	}
	if got := table.find(other); got != (app{id: other}) {
		t.Errorf("unknown key: %+v", got)
	}
	if got := table.find(""); got != (app{}) {
		t.Errorf("no key: %+v", got)
	}
}

func TestAppMistakesAreNamed(t *testing.T) {
	const id = "0123456789ab"
	cases := []struct {
		name string
		apps []App
		want string
	}{
		{"no name", []App{{KeyIDs: []string{id}}}, "apps[0].name"},
		{"a name like an id", []App{{Name: "aaaaaaaaaaaa", KeyIDs: []string{id}}}, "taken for the id"},
		{"no keys", []App{{Name: "a"}}, "apps[0].keyIds"},
		{"a key instead of its id", []App{{Name: "a", KeyIDs: []string{"app-secret"}}}, "apps[0].keyIds[0]"},
		{"a name twice", []App{{Name: "a", KeyIDs: []string{id}}, {Name: "a", KeyIDs: []string{"0123456789ac"}}}, "apps[1].name"},
		{"a key twice", []App{{Name: "a", KeyIDs: []string{id}}, {Name: "b", KeyIDs: []string{id}}}, "apps[1].keyIds[0]"},
	}
	for _, tc := range cases {
		var got []string
		validateApps(tc.apps, func(field, format string, args ...any) {
			got = append(got, field+": "+fmt.Sprintf(format, args...))
		})
		if len(got) != 1 || !strings.Contains(got[0], tc.want) {
			t.Errorf("%s: got %q, want one with %q", tc.name, got, tc.want)
		}
		if strings.Contains(strings.Join(got, ""), "secret") {
			t.Errorf("%s: the message shows the key: %q", tc.name, got)
		}
	}
}
