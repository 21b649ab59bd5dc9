package spec

import "embed"

// Sources holds the files of this package that declare types, so that what
// users read about a field is its doc comment and nothing else.
//
//go:embed autoscale.go backup.go bytes.go dify.go duration.go gateway.go gateway_apps.go gateway_cache.go gateway_jobs.go kubernetes.go local.go
//go:embed observability.go postgres.go ratelimit.go redis.go secret.go security.go spec.go
//go:embed vectors.go zones.go
var Sources embed.FS
