package audit

import (
	"bytes"
	"testing"
)

// owed are what more replicas, which a fix may set, owe.
var owed = map[string]bool{"FN310": true, "FN320": true, "FN321": true}

func TestFixesMendAndBreakNothing(t *testing.T) {
	fixes := 0
	for path, a := range cases(t) {
		in := inventoryOf(t, a)
		before := Run(in, nil)
		edits := map[string][]Edit{}
		fixable := map[string]bool{}
		for _, f := range before.Findings {
			for _, e := range f.Edits {
				edits[e.File] = append(edits[e.File], e)
				fixable[f.Rule.ID+" "+f.Message] = true
				fixes++
			}
		}
		changed := false
		for i, f := range a.Files {
			data, err := Apply(f.Data, edits[f.Name])
			if err != nil {
				t.Errorf("%s: %v", path, err)
				continue
			}
			// Comments stay.
			if bytes.Count(data, []byte("#")) != bytes.Count(f.Data, []byte("#")) {
				t.Errorf("%s: %s lost or won a comment:\n%s", path, f.Name, data)
			}
			changed = changed || !bytes.Equal(data, f.Data)
			a.Files[i].Data = data
		}
		if !changed {
			continue
		}
		known := map[string]bool{}
		for _, f := range before.Findings {
			known[f.Rule.ID] = true
		}
		for _, f := range Run(inventoryOf(t, a), nil).Findings {
			if fixable[f.Rule.ID+" "+f.Message] {
				t.Errorf("%s: still there after its fix: %s", path, expectation(f))
			}
			if !known[f.Rule.ID] && !owed[f.Rule.ID] {
				t.Errorf("%s: a fix made %s", path, expectation(f))
			}
		}
	}
	if fixes == 0 {
		t.Error("no case has a fix")
	}
}

func TestApply(t *testing.T) {
	text := "a: 1 # one\nb: x\nc: 3\n"
	got, err := Apply([]byte(text), []Edit{
		{File: "f", Line: 2, Column: 4, Old: "x", New: "yes"},
		{File: "f", Line: 1, Column: 4, Old: "1", New: "2"},
		{File: "f", Line: 1, Column: 4, Old: "1", New: "2"}, // the same twice
		{File: "f", Line: 3, Remove: true},
		{File: "f", Line: 2, New: "n: 0\n"},
	})
	if want := "a: 2 # one\nn: 0\nb: yes\n"; err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	for name, edits := range map[string][]Edit{
		"other text":   {{File: "f", Line: 2, Column: 4, Old: "y", New: "z"}},
		"behind end":   {{File: "f", Line: 9, New: "z\n"}},
		"two opinions": {{File: "f", Line: 1, Column: 4, Old: "1", New: "2"}, {File: "f", Line: 1, Column: 4, Old: "1", New: "3"}},
	} {
		if _, err := Apply([]byte(text), edits); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
