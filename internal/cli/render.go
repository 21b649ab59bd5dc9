package cli

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"fournines/internal/outputdir"
	"fournines/internal/strictyaml"
	"fournines/kubernetes"
)

func (a *app) renderCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "render",
		Short: "Write the spec in the form of another system",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(a.renderKubernetesCommand())
	return cmd
}

// renderOptions are the flags of `fournines render kubernetes`.
type renderOptions struct {
	file, output   string
	force, secrets bool
}

func (a *app) renderKubernetesCommand() *cobra.Command {
	var o renderOptions
	cmd := &cobra.Command{
		Use:   "kubernetes",
		Short: "Write the manifests of a highly available Dify on Kubernetes",
		Long: `Write the manifests of a highly available Dify on Kubernetes: one kustomize folder
for each layer, and one kustomization of all. The databases are left to their
operators (CloudNativePG, OpsTree's for Redis, Milvus's), or to services of your
own; the section kubernetes of the spec says which. docs/kubernetes.md lists what
the cluster must have.

The folder belongs to this command: files of an earlier rendering that are no
longer needed go, and a folder that holds anything else is left alone. Changes of
your own belong into an overlay. The same spec gives the same files.

No secret is written. --secrets prints the Secrets with new random values, to be
handed to "kubectl create" once, which never overwrites; or name a store of
External Secrets in kubernetes.secrets.store.`,
		Example: `  # write the folder, and apply it
  fournines render kubernetes -o manifests
  kubectl apply -k manifests/namespace
  fournines render kubernetes --secrets | kubectl create -f -
  kubectl apply -k manifests

  # look at it, or check it
  fournines render kubernetes -o - | less
  fournines render kubernetes -o - | fournines audit -`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			switch {
			case o.secrets && o.output != "":
				return &exitError{code: 2, err: errors.New("--secrets prints to standard output; it does not go with --output")}
			case o.secrets:
				return a.renderSecrets(&o)
			case o.output == "":
				return &exitError{code: 2, err: errors.New(`no folder to write to: give -o DIRECTORY, or -o - for standard output`)}
			}
			return a.renderKubernetes(&o)
		},
	}
	fileFlag(cmd, &o.file)
	cmd.Flags().StringVarP(&o.output, "output", "o", "", `folder to write; "-" prints one stream`)
	cmd.Flags().BoolVar(&o.force, "force", false, "lose what was edited by hand in the folder")
	cmd.Flags().BoolVar(&o.secrets, "secrets", false, "print the Secrets with new random values instead")
	return cmd
}

func (a *app) renderKubernetes(o *renderOptions) error {
	s, err := a.readSpec(o.file)
	if err != nil {
		return err
	}
	m, err := kubernetes.Render(s)
	if err != nil {
		return inSpec(o.file, err)
	}
	if o.output == "-" {
		stream, err := m.Stream()
		if err != nil {
			return err
		}
		_, err = a.stdout.Write(stream)
		return err
	}
	tree, err := m.Tree()
	if err != nil {
		return err
	}
	r, err := outputdir.Write(o.output, tree, o.force)
	if err != nil {
		return err
	}
	layers := make([]string, len(m.Layers))
	for i, l := range m.Layers {
		layers[i] = l.Name
	}
	_, err = fmt.Fprintf(a.stdout, "%s: %d objects in %d layers (%s)\n%s: %d files written, %d removed, %d unchanged\n",
		o.output, len(m.Objects()), len(layers), strings.Join(layers, ", "), o.output, len(r.Written), len(r.Removed), r.Unchanged)
	return err
}

func (a *app) renderSecrets(o *renderOptions) error {
	s, err := a.readSpec(o.file)
	if err != nil {
		return err
	}
	stream, given, err := kubernetes.GenerateSecrets(s, rand.Reader)
	if err != nil {
		return inSpec(o.file, err)
	}
	for _, g := range given {
		var keys strings.Builder
		for _, k := range g.Keys {
			fmt.Fprintf(&keys, " --from-file=%s=FILE", k)
		}
		fmt.Fprintf(a.stderr, "not among them, since only you know it: kubectl -n %s create secret generic %s%s\n", s.Kubernetes.Namespace, g.Name, keys.String())
	}
	_, err = a.stdout.Write(stream)
	return err
}

// inSpec names the file that each problem is in.
func inSpec(file string, err error) error {
	var lines []string
	for _, e := range unjoined(err) {
		var p strictyaml.Problem
		if !errors.As(e, &p) {
			return err
		}
		lines = append(lines, display(file)+": "+p.Error())
	}
	return errors.New(strings.Join(lines, "\n"))
}

// unjoined are the errors that errors.Join put together.
func unjoined(err error) []error {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		return joined.Unwrap()
	}
	return []error{err}
}
