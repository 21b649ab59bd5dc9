package local

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"fournines/internal/process"
	"fournines/topology"
)

// A step of the machine's clock must change nothing but the time stamps of
// logs. The clock cannot be set for one process, so this test forbids what
// would make the supervision depend on it: readings that lose their monotonic
// part, and moments that are stored to be compared later.
func TestNothingDependsOnTheWallClock(t *testing.T) {
	// Methods and functions of package time whose result has no monotonic part,
	// or which compare by the wall clock alone.
	wall := map[string]bool{
		"Unix": true, "UnixMilli": true, "UnixMicro": true, "UnixNano": true, "UTC": true, "Local": true, "In": true,
		"Round": true, "AddDate": true, "Date": true, "Parse": true, "ParseInLocation": true,
	}
	// Rounding a duration is harmless, and so is a name for people; these are the
	// places that do it, and nothing else.
	allowed := map[string]int{
		"unit.go":    1, // "next try in 500ms"
		"replace.go": 1, // the name of a directory that is set aside
	}
	for _, dir := range []string{".", "../internal/process"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no sources in %s: %v", dir, err)
		}
		for _, file := range files {
			name := filepath.Base(file)
			if strings.HasSuffix(name, "_test.go") || strings.HasPrefix(name, "plan") {
				continue // a plan decides nothing while the stack runs
			}
			set := token.NewFileSet()
			tree, err := parser.ParseFile(set, file, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			uses := 0
			ast.Inspect(tree, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				if sel, ok := call.Fun.(*ast.SelectorExpr); ok && wall[sel.Sel.Name] {
					if uses++; uses > allowed[name] {
						t.Errorf("%s: %s makes a time that jumps with the clock", set.Position(call.Pos()), sel.Sel.Name)
					}
				}
				return true
			})
		}
	}
	for _, value := range []any{savedState{}, unitRecord{}, topology.Status{}, process.Identity{}} {
		noTimes(t, reflect.TypeOf(value), reflect.TypeOf(value).Name())
	}
}

// noTimes fails for every moment in a type that is stored or sent.
func noTimes(t *testing.T, typ reflect.Type, path string) {
	t.Helper()
	switch {
	case typ == reflect.TypeFor[time.Time]():
		t.Errorf("%s is a moment by the wall clock", path)
	case typ.Kind() == reflect.Struct:
		for i := range typ.NumField() {
			noTimes(t, typ.Field(i).Type, path+"."+typ.Field(i).Name)
		}
	case typ.Kind() == reflect.Slice, typ.Kind() == reflect.Map, typ.Kind() == reflect.Pointer:
		noTimes(t, typ.Elem(), path+"[]")
	}
}
