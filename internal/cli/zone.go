package cli

import (
	"context"

	"github.com/spf13/cobra"

	"fournines/local"
)

func (a *app) zoneCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "zone",
		Short: "Take the power or the network of a zone away, and give it back",
	}
	cmd.AddCommand(
		a.zoneVerb("off", "Kill everything in a zone at once and hold it", (*local.Client).PowerOff),
		a.zoneVerb("on", "Start what `zone off` killed", (*local.Client).PowerOn),
		a.zoneVerb("cut", "Cut a zone off the network; its processes go on running", (*local.Client).Cut),
		a.zoneVerb("heal", "Join a zone that was cut off to the network again", (*local.Client).Heal),
	)
	return cmd
}

func (a *app) zoneVerb(verb, short string, ask func(*local.Client, context.Context, string) error) *cobra.Command {
	var dataDir string
	cmd := &cobra.Command{
		Use:   verb + " ZONE",
		Short: short,
		Args:  exactlyOne("zone", "fournines status"),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := local.AbsDir(dataDir)
			if err != nil {
				return err
			}
			client := local.NewClient(dir)
			defer client.Close()
			return ask(client, cmd.Context(), args[0])
		},
	}
	dataDirFlag(cmd.Flags(), &dataDir)
	return cmd
}
