package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"fournines/internal/strictyaml"
	"fournines/spec"
	"fournines/spec/describe"
)

// configCommand groups what only looks at the spec.
func (a *app) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check and show fournines.yaml",
		Args:  subcommandOnly,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.configValidateCommand(), a.configShowCommand(), a.configSchemaCommand(), a.configReferenceCommand())
	return cmd
}

// subcommandOnly refuses a word that is no subcommand; cobra itself would show
// the help and report success.
func subcommandOnly(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	names := []string{}
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	return &exitError{code: 2, err: fmt.Errorf("%s has no command %q; %s", cmd.CommandPath(), args[0], strictyaml.Suggest(args[0], names))}
}

func (a *app) configValidateCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "validate",
		Short: "Check a spec and report every mistake with its place",
		Long: `Check a spec and report every mistake as file:line:column: field: message.

The exit code is 0 when the spec is valid and 1 when it is not.`,
		Example: "  fournines config validate\n  fournines config validate -f staging.yaml\n  generate-spec | fournines config validate -f -",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			s, err := a.readSpec(file)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.stdout, "%s is valid: %s\n", display(file), summary(s))
			return err
		},
	}
	fileFlag(cmd, &file)
	return cmd
}

func (a *app) configShowCommand() *cobra.Command {
	var file, output string
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Print the spec in effect, with defaults and without secrets",
		Long: `Print the spec in effect: every field, with its default where the file says
nothing. Secrets are replaced by a placeholder. Without -f and without a
fournines.yaml in this directory, the defaults are shown.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, found, err := a.specOrDefault(file, cmd.Flags().Changed("file"))
			if err != nil {
				return err
			}
			if !found {
				fmt.Fprintf(a.stderr, "no %s here; these are the defaults\n", spec.FileName)
			}
			return a.printSpec(s, output)
		},
	}
	fileFlag(cmd, &file)
	cmd.Flags().StringVarP(&output, "output", "o", "yaml", "format: yaml or json")
	return cmd
}

func (a *app) configSchemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of a spec, for editors",
		Long: `Print the JSON Schema (draft 2020-12) of a spec. Editors that speak the YAML
language server complete and check the file with it; the file of ` + "`fournines init`" + `
names it in its first line.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			text, err := describe.Schema()
			if err != nil {
				return err
			}
			_, err = a.stdout.Write(text)
			return err
		},
	}
}

// configReferenceCommand prints docs/spec.md; it is for those who work on
// fournines itself.
func (a *app) configReferenceCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "reference",
		Short:  "Print the reference page of the spec, in Markdown",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			text, err := describe.Reference()
			if err != nil {
				return err
			}
			_, err = a.stdout.Write(text)
			return err
		},
	}
}

// fileFlag adds the flag that names the spec.
func fileFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "file", "f", spec.FileName, `spec to read; "-" is standard input`)
}

// display is how messages call the file.
func display(file string) string {
	if file == "-" {
		return "standard input"
	}
	return file
}

// readSpec loads and validates a spec from a file, or from standard input when
// the file is "-".
func (a *app) readSpec(file string) (*spec.Spec, error) {
	if file != "-" {
		return spec.Load(file)
	}
	text, err := io.ReadAll(io.LimitReader(a.stdin, spec.MaxFileSize+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read standard input: %w", err)
	case len(text) > spec.MaxFileSize:
		return nil, fmt.Errorf("standard input has more than the %d bytes a spec may have", spec.MaxFileSize)
	}
	return spec.Parse("<stdin>", text)
}

// specOrDefault reads the spec that a command works on. When the user named no
// file and the usual one does not exist, it returns the defaults and false.
func (a *app) specOrDefault(file string, named bool) (s *spec.Spec, found bool, err error) {
	s, err = a.readSpec(file)
	if err != nil && !named && errors.Is(err, fs.ErrNotExist) {
		def := spec.Default()
		return &def, false, nil
	}
	return s, err == nil, err
}

// printSpec writes a spec as yaml or json. Secrets hide themselves.
func (a *app) printSpec(s *spec.Spec, format string) error {
	var text bytes.Buffer
	enc := yaml.NewEncoder(&text)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(s), enc.Close()); err != nil {
		return fmt.Errorf("write the spec: %w", err)
	}
	switch format {
	case "yaml":
	case "json":
		// Over YAML, so that both forms have the same names and values.
		var plain any
		if err := yaml.Unmarshal(text.Bytes(), &plain); err != nil {
			return fmt.Errorf("write the spec: %w", err)
		}
		text.Reset()
		out := json.NewEncoder(&text)
		out.SetEscapeHTML(false)
		out.SetIndent("", "  ")
		if err := out.Encode(plain); err != nil {
			return fmt.Errorf("write the spec: %w", err)
		}
	default:
		return &exitError{code: 2, err: fmt.Errorf("unknown output format %q; use yaml or json", format)}
	}
	_, err := a.stdout.Write(text.Bytes())
	return err
}

// summary tells in one line what a spec describes.
func summary(s *spec.Spec) string {
	zones := make([]string, len(s.Zones))
	for i, z := range s.Zones {
		zones[i] = z.Name
		if z.Role != spec.RoleFull {
			zones[i] += " (" + string(z.Role) + ")"
		}
	}
	instances := fmt.Sprintf("%d api instances", s.Dify.APIReplicasPerZone*len(s.FullZones()))
	if s.Dify.Source == spec.SourceExternal {
		instances = fmt.Sprintf("%d api instances", len(s.Dify.External))
	}
	return fmt.Sprintf("%q, zones %s, Dify %s from %s, %s", s.Name, strings.Join(zones, ", "), s.Dify.Version, s.Dify.Source, instances)
}

// writeNew writes a file that does not exist yet, or replaces one as a whole
// when force is set.
func writeNew(path string, text []byte, force bool) error {
	if !force {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		_, err = f.Write(text)
		return errors.Join(err, f.Close())
	}
	// A crash in between must not leave half a file in place of a whole one.
	next := path + ".new"
	if err := os.WriteFile(next, text, 0o644); err != nil {
		return err
	}
	if err := os.Rename(next, path); err != nil {
		return errors.Join(err, os.Remove(next))
	}
	return nil
}
