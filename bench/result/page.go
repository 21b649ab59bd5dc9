package result

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// WriteJSON writes results of another form than a Suite's to path.
func WriteJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// CheckMarks finds out before a long run whether the table called name has a
// place in a page; an empty path is no page.
func CheckMarks(path, name string) error {
	if path == "" {
		return nil
	}
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return replaced(path, string(page), name, "", nil)
}

// ReplaceTable puts text between the marks of that name in a page.
func ReplaceTable(path, name, text string) error {
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var out string
	if err := replaced(path, string(page), name, text, &out); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(out), 0o644)
}

// replaced puts into out, if there is one, the page with text between the marks.
func replaced(path, page, name, text string, out *string) error {
	begin, end := "<!-- "+name+": begin -->\n", "<!-- "+name+": end -->"
	before, rest, ok := strings.Cut(page, begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		return fmt.Errorf("%s has no marks %q and %q", path, begin, end)
	}
	if out != nil {
		*out = before + begin + text + end + after
	}
	return nil
}
