package kubernetes

import (
	"fmt"
	"strings"

	"fournines/internal/strictyaml"
)

// difyVersion is what differs between versions of Dify. The table below is the
// only place that knows.
type difyVersion struct {
	version string
	// sandbox and pluginDaemon are the tags that belong to it; versions without
	// plugins have no daemon.
	sandbox, pluginDaemon string
	// longestRun is what Dify allows a run of an app, in seconds.
	longestRun int64
	// readiness is a page that reads the database.
	readiness string
	// migrate is the command that brings the schema up to date; empty means the
	// image's own MODE=migration.
	migrate []string
	// queues are Celery's, one group of workers for each list.
	queues []queueGroup
	// queueVariable tells the image's entry point which of them a worker takes.
	queueVariable string
}

// queueGroup is a set of queues that has workers of its own, so that a long
// queue of one kind does not delay another.
type queueGroup struct {
	name   string
	queues []string
}

// The queues of Dify. A queue that a version does not know stays empty.
var (
	indexingQueues = []string{"dataset", "priority_dataset", "priority_pipeline", "pipeline", "dataset_summary", "mail", "ops_trace", "app_deletion", "plugin", "retention"}
	// From 1.13 on streams of workflows and chatflows are runs of these.
	workflowQueues = []string{
		"workflow_based_app_execution", "workflow", "workflow_storage", "conversation", "schedule_poller", "schedule_executor",
		"triggered_workflow_dispatcher", "trigger_refresh_executor", "trigger_refresh_publisher", "api_token",
	}
)

// difyVersions are the versions that can be rendered, the oldest first. The tags
// are those of each version's compose file.
var difyVersions = []difyVersion{
	{
		version: "0.6.9", sandbox: "0.2.0", longestRun: 600, readiness: "/console/api/setup",
		migrate:       []string{"flask", "db", "upgrade"},
		queues:        []queueGroup{{"worker", []string{"dataset", "generation", "mail", "ops_trace", "app_deletion"}}},
		queueVariable: "CELERY_QUEUES",
	},
	newerDify("1.9.2", "0.2.12", "0.3.3-local"),
	newerDify("1.13.3", "0.2.14", "0.5.3-local"),
	newerDify("1.14.0", "0.2.15", "0.6.0-local"),
	newerDify("1.16.1", "0.2.15", "0.6.3-local"),
	newerDify("1.17.1", "0.2.15", "0.6.10-local"),
}

func newerDify(version, sandbox, pluginDaemon string) difyVersion {
	return difyVersion{
		version: version, sandbox: sandbox, pluginDaemon: pluginDaemon, longestRun: 1200,
		readiness:     "/console/api/system-features",
		queues:        []queueGroup{{"worker", indexingQueues}, {"worker-workflow", workflowQueues}},
		queueVariable: "CELERY_QUEUES",
	}
}

// plugins reports whether the version runs plugins in a daemon.
func (v *difyVersion) plugins() bool { return v.pluginDaemon != "" }

// Versions are the versions of Dify that can be rendered, the oldest first.
func Versions() []string {
	var names []string
	for _, v := range difyVersions {
		names = append(names, v.version)
	}
	return names
}

func versionOf(name string) (difyVersion, error) {
	for _, v := range difyVersions {
		if v.version == name {
			return v, nil
		}
	}
	return difyVersion{}, strictyaml.Problem{
		Path: "dify.version", Message: fmt.Sprintf("%q cannot be rendered for Kubernetes: which sandbox and plugin daemon belong to it is not known", name),
		Hint: "use one of " + strings.Join(Versions(), ", "),
	}
}
