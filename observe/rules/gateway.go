package rules

import "time"

// Prometheus puts the zone of the gateway that tells into "zone", and that of
// the instance that it tells of into "exported_zone".
var gatewayAlerts = []Alert{
	{
		Name: "GatewayDown", Severity: Critical, For: 10 * time.Second, Expr: `max(up{job="gateway"}) == 0`,
		Summary:     `No gateway answers: nobody is served.`,
		Description: `All gateways have been silent for 10 seconds.`,
	},
	{
		Name: "ServiceUnreachable", Severity: Critical, For: 10 * time.Second,
		Expr:        `max by (service) (fournines_loadbalancer_backend_up) == 0`,
		Summary:     `The address of {{ $labels.service }} has nobody behind it.`,
		Description: `No backend of the service {{ $labels.service }} passes its checks, for 10 seconds by now; its connections are reset.`,
	},
	{
		Name: "NoHealthyInstance", Severity: Critical, For: 5 * time.Second,
		Expr:        `max(fournines_gateway_endpoint_healthy) == 0`,
		Summary:     `No instance of Dify takes requests.`,
		Description: `Every gateway counts all instances as unhealthy or ejected: requests get 503.`,
	},
	{
		Name: "InstanceUnhealthy", Severity: Warning, For: time.Minute,
		Expr:        `max by (endpoint, zone) (label_replace(fournines_gateway_endpoint_healthy, "zone", "$1", "exported_zone", "(.+)")) == 0`,
		Summary:     `Dify instance {{ $labels.endpoint }} takes no requests.`,
		Description: `No gateway has sent {{ $labels.endpoint }} in zone {{ $labels.zone }} a request for a minute; the others carry its share.`,
	},
	{
		Name: "InstanceEjected", Severity: Warning,
		Expr:        `sum by (endpoint) (increase(fournines_gateway_ejections_total[10m])) >= 3`,
		Summary:     `Dify instance {{ $labels.endpoint }} is ejected again and again.`,
		Description: `Gateways took {{ $labels.endpoint }} out {{ $value | printf "%.0f" }} times within 10 minutes because requests failed there, while its health check passes.`,
	},
	{
		Name: "RequestsShed", Severity: Warning, For: time.Minute,
		Expr:        `sum(rate(fournines_gateway_shed_total[5m])) / sum(rate(fournines_gateway_requests_total[5m])) > 0.01`,
		Summary:     `{{ $value | humanizePercentage }} of all requests are refused for overload.`,
		Description: `Over 5 minutes the gateways refused {{ $value | humanizePercentage }} of all requests to keep the rest fast; 1 % is the limit. More is asked than the instances can do.`,
	},
	{
		Name: "StreamsCut", Severity: Warning,
		Expr:        `sum(increase(fournines_gateway_stream_cuts_total{outcome="error_event"}[5m])) >= 5`,
		Summary:     `{{ $value | printf "%.0f" }} answers broke off within 5 minutes.`,
		Description: `{{ $value | printf "%.0f" }} streams had begun to answer when their instance was lost, so that they could not begin again elsewhere.`,
	},
	{
		Name: "RateLimitsDegraded", Severity: Warning, For: time.Minute,
		Expr:        `max by (component) (fournines_gateway_limit_degraded) == 1`,
		Summary:     `{{ $labels.component }} enforces its share of the rate limits alone.`,
		Description: `{{ $labels.component }} cannot reach a Redis master, for a minute by now. Limits hold about, not exactly.`,
	},
	{
		Name: "JobsWaitTooLong", Severity: Warning, For: time.Minute,
		Expr:        `max(fournines_gateway_jobs_oldest_seconds) > 300`,
		Summary:     `Jobs wait {{ $value | humanizeDuration }} for a worker.`,
		Description: `The oldest job that is due has waited {{ $value | humanizeDuration }}; 5 minutes is the limit.`,
	},
	{
		Name: "JobsDead", Severity: Warning,
		Expr:        `max(fournines_gateway_jobs{state="dead"}) > 0`,
		Summary:     `{{ $value }} jobs have failed for good.`,
		Description: `{{ $value }} jobs are dead letters: accepted, and not carried out. Somebody must replay or forget them.`,
	},
	{
		Name: "JobsStoreDown", Severity: Warning, For: time.Minute,
		Expr:        `max(fournines_gateway_jobs_store_up) == 0`,
		Summary:     `No gateway can read the queues of jobs.`,
		Description: `For a minute no gateway could read all queues in Redis: new jobs get 503, accepted ones wait.`,
	},
	{
		Name: "CacheHitRateDropped", Severity: Warning, For: 5 * time.Minute,
		Expr: `sum(rate(fournines_gateway_cache_requests_total{result="hit"}[30m])) / sum(rate(fournines_gateway_cache_requests_total[30m]))
			< 0.5 * sum(rate(fournines_gateway_cache_requests_total{result="hit"}[1d])) / sum(rate(fournines_gateway_cache_requests_total[1d]))
			and sum(rate(fournines_gateway_cache_requests_total{result="hit"}[1d])) / sum(rate(fournines_gateway_cache_requests_total[1d])) > 0.2
			and sum(increase(fournines_gateway_cache_requests_total[30m])) > 100`,
		Summary:     `The cache of retrievals answers only {{ $value | humanizePercentage }}.`,
		Description: `Over half an hour {{ $value | humanizePercentage }} of retrievals were hits, less than half of what the last day had; the vector store carries the rest.`,
	},
}
