package result

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Outlet is where a measurement's result goes beside the terminal. An empty path
// is nowhere.
type Outlet struct {
	JSON string // a file
	Page string // a Markdown page whose table is replaced
	Mark string // names the table within the page
}

// Flags adds the flags that set the paths.
func (o *Outlet) Flags(flags *flag.FlagSet) {
	flags.StringVar(&o.JSON, "o", "", "file for the results in JSON; empty for none")
	flags.StringVar(&o.Page, "table", "", "Markdown page whose table is replaced; empty for none")
}

// Check finds out before a long run whether the table has a place in the page.
func (o *Outlet) Check() error {
	if o.Page == "" {
		return nil
	}
	page, err := os.ReadFile(o.Page)
	if err != nil {
		return err
	}
	_, err = replaced(o.Page, string(page), o.Mark, "")
	return err
}

// Publish writes v as JSON, and table into the page.
func (o *Outlet) Publish(v any, table string) error {
	if o.JSON != "" {
		if err := writeJSON(o.JSON, v); err != nil {
			return err
		}
	}
	if o.Page == "" {
		return nil
	}
	page, err := os.ReadFile(o.Page)
	if err != nil {
		return err
	}
	text, err := replaced(o.Page, string(page), o.Mark, table)
	if err != nil {
		return err
	}
	return os.WriteFile(o.Page, []byte(text), 0o644)
}

func writeJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// replaced is a page with text between its marks of that name.
func replaced(path, page, name, text string) (string, error) {
	begin, end := "<!-- "+name+": begin -->\n", "<!-- "+name+": end -->"
	before, rest, ok := strings.Cut(page, begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		return "", fmt.Errorf("%s has no marks %q and %q", path, begin, end)
	}
	return before + begin + text + end + after, nil
}
