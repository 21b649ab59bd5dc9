package dify

import "strings"

// maxTaskID bounds a task id; Dify's are UUIDs.
const maxTaskID = 64

// StopPath returns the path of the call that stops the task which a POST to
// path began, and false when path begins none that can be stopped or the id is
// not one that may stand in a path. The service API, the web app's and the
// console's stand side by side:
//
//	/v1/chat-messages                        /v1/chat-messages/{task}/stop
//	/v1/completion-messages                  /v1/completion-messages/{task}/stop
//	/v1/workflows/run, /v1/workflows/x/run   /v1/workflows/tasks/{task}/stop
//	/console/api/apps/x/chat-messages        /console/api/apps/x/chat-messages/{task}/stop
//	/console/api/apps/x/…workflows/draft/run /console/api/apps/x/workflow-runs/tasks/{task}/stop
func StopPath(path, task string) (string, bool) {
	if task == "" || len(task) > maxTaskID || strings.Trim(task, taskChars) != "" {
		return "", false
	}
	path = strings.TrimSuffix(path, "/")
	switch Classify("POST", path) {
	case Chat:
		return path + "/" + task + "/stop", true
	case Workflow:
		if app, ok := strings.CutPrefix(path, "/console/api/apps/"); ok {
			id, _, _ := strings.Cut(app, "/")
			return "/console/api/apps/" + id + "/workflow-runs/tasks/" + task + "/stop", true
		}
		if i := strings.Index(path, "/workflows/"); i > 0 {
			return path[:i] + "/workflows/tasks/" + task + "/stop", true
		}
	}
	return "", false
}

const taskChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
