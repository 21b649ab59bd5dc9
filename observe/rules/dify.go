package rules

import "time"

var vectorsAlerts = []Alert{
	{
		Name: "MilvusDown", Severity: Critical, For: 30 * time.Second, Expr: `max(up{job="milvus"}) == 0`,
		Summary:     `Milvus does not answer: knowledge cannot be searched.`,
		Description: `Milvus has been silent for 30 seconds. Retrievals that the gateway's cache has are still answered.`,
	},
	{
		Name: "MilvusErrors", Severity: Warning, For: 2 * time.Minute,
		Expr: `sum(rate(milvus_proxy_req_count{status="fail"}[5m])) / sum(rate(milvus_proxy_req_count{status="total"}[5m])) > 0.01
			and sum(increase(milvus_proxy_req_count{status="total"}[5m])) > 20`,
		Summary:     `{{ $value | humanizePercentage }} of the requests to Milvus fail.`,
		Description: `Over 5 minutes {{ $value | humanizePercentage }} of the requests to Milvus failed; 1 % is the limit.`,
	},
	{
		// Milvus measures in milliseconds.
		Name: "MilvusSlow", Severity: Warning, For: 2 * time.Minute,
		Expr:        `histogram_quantile(0.99, sum by (le) (rate(milvus_proxy_sq_latency_bucket[5m]))) > 1000`,
		Summary:     `Searches in Milvus are slow.`,
		Description: `One search of a hundred took longer than {{ $value | printf "%.0f" }} ms over the last 5 minutes; 1000 ms is the limit.`,
	},
}

var difyAlerts = []Alert{
	{
		Name: "DifyNoWorker", Severity: Critical, For: 30 * time.Second, Expr: `max(up{job="dify-worker"}) == 0`,
		Summary:     `No worker of Dify runs.`,
		Description: `All workers have been silent for 30 seconds: documents are not indexed, and from Dify 1.13 on workflows do not run.`,
	},
	{
		// -1 says that the broker does not answer.
		Name: "DifyWorkerBacklog", Severity: Warning, For: 2 * time.Minute,
		Expr:        `max by (queue) (difysim_queue_length) > 200 or max by (queue_name) (celery_queue_length) > 200`,
		Summary:     `{{ $value }} tasks wait for Dify's workers.`,
		Description: `{{ $value }} tasks have waited in the queue {{ $labels.queue }}{{ $labels.queue_name }} for 2 minutes; 200 is the limit.`,
	},
}
