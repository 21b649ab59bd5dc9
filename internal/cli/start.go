package cli

import (
	"github.com/spf13/cobra"

	"fournines/local"
)

func (a *app) startCommand() *cobra.Command {
	return a.componentCommand("start", "Start a component that was stopped by hand", true, (*local.Client).Start)
}

func (a *app) stopCommand() *cobra.Command {
	return a.componentCommand("stop", "Stop a component and hold it until `fournines start`", false, (*local.Client).Stop)
}

func (a *app) killCommand() *cobra.Command {
	return a.componentCommand("kill", "Kill a component as a crash would; the supervisor starts it again", false, (*local.Client).Kill)
}

func (a *app) pauseCommand() *cobra.Command {
	return a.componentCommand("pause", "Make a component hang: it keeps its connections and answers nothing", false, (*local.Client).Pause)
}

func (a *app) resumeCommand() *cobra.Command {
	return a.componentCommand("resume", "Let a paused component go on", false, (*local.Client).Resume)
}
