package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"fournines/spec"
	"fournines/spec/describe"
)

// schemaFile stands beside the spec, for editors.
const schemaFile = "fournines.schema.json"

// initCommand writes a commented spec.
func (a *app) initCommand() *cobra.Command {
	var output string
	var force bool
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Write a commented fournines.yaml with every field and its default",
		Long: `Write a commented fournines.yaml with every field, its default and its range,
and beside it ` + schemaFile + `, with which editors complete and check it.

Nothing is overwritten unless --force is given.`,
		Example: "  fournines init\n  fournines init -o staging/fournines.yaml\n  fournines init -o -",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if output == "-" {
				text, err := describe.Template("")
				if err != nil {
					return err
				}
				_, err = a.stdout.Write(text)
				return err
			}
			return a.writeSpec(output, force)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", spec.FileName, `file to write; "-" is standard output`)
	cmd.Flags().BoolVar(&force, "force", false, "replace what exists")
	return cmd
}

func (a *app) writeSpec(output string, force bool) error {
	text, err := describe.Template("./" + schemaFile)
	if err != nil {
		return err
	}
	schema, err := describe.Schema()
	if err != nil {
		return err
	}
	if err := writeNew(output, text, force); err != nil {
		return describeWrite(err, output)
	}
	// The schema is generated and the same for every spec in a directory, so
	// one that fournines wrote earlier is brought up to date; a file that
	// somebody else put there is left alone.
	path := filepath.Join(filepath.Dir(output), schemaFile)
	old, err := os.ReadFile(path)
	ours := errors.Is(err, fs.ErrNotExist) || bytes.Contains(old, []byte(`"`+describe.SchemaID+`"`))
	if err := writeNew(path, schema, force || ours); err != nil {
		return describeWrite(err, path)
	}
	_, err = fmt.Fprintf(a.stdout, "wrote %s (and %s for editors)\nedit it, then run: fournines config validate%s\n",
		output, path, flagFor(output))
	return err
}

// flagFor is what has to follow a command so that it reads the given file.
func flagFor(file string) string {
	if file == spec.FileName {
		return ""
	}
	return " -f " + file
}

// describeWrite says what to do about a file that cannot be written.
func describeWrite(err error, path string) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("directory %s does not exist; create it first", filepath.Dir(path))
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%s exists; give another name with -o, or replace it with --force", path)
	}
	return fmt.Errorf("write %s: %w", path, err)
}
