package rules

import "time"

// disks are file systems that can fill up.
const disks = `fstype!~"tmpfs|ramfs|devtmpfs|squashfs|iso9660|nsfs"`

var machineAlerts = []Alert{
	{
		Name: "CertificateExpiresSoon", Severity: Warning,
		Expr: `fournines_gateway_certificate_expiry_timestamp_seconds - time() < 14 * 86400
			or fournines_pgproxy_certificate_expiry_timestamp_seconds - time() < 14 * 86400`,
		Summary:     `The certificate of {{ $labels.component }} expires in {{ $value | humanizeDuration }}.`,
		Description: `{{ $labels.component }} serves a certificate that is valid for {{ $value | humanizeDuration }} more; two weeks is the limit. Renewal should have replaced it.`,
	},
	{
		Name: "CertificateExpires", Severity: Critical,
		Expr: `fournines_gateway_certificate_expiry_timestamp_seconds - time() < 2 * 86400
			or fournines_pgproxy_certificate_expiry_timestamp_seconds - time() < 2 * 86400`,
		Summary:     `The certificate of {{ $labels.component }} expires in {{ $value | humanizeDuration }}: then every client refuses it.`,
		Description: `{{ $labels.component }} serves a certificate that is valid for {{ $value | humanizeDuration }} more (negative: since then it is not).`,
	},
	{
		Name: "DiskAlmostFull", Severity: Critical, For: time.Minute,
		Expr:        `node_filesystem_avail_bytes{` + disks + `} / node_filesystem_size_bytes{` + disks + `} < 0.05`,
		Summary:     `The file system {{ $labels.mountpoint }} has {{ $value | humanizePercentage }} left.`,
		Description: `{{ $labels.mountpoint }} on {{ $labels.device }} has {{ $value | humanizePercentage }} of its space left; 5 % is the limit. PostgreSQL, etcd and Redis stop taking writes when it is full.`,
	},
	{
		Name: "DiskFillsUp", Severity: Warning, For: 10 * time.Minute,
		Expr: `predict_linear(node_filesystem_avail_bytes{` + disks + `}[1h], 4 * 3600) < 0
			and node_filesystem_avail_bytes{` + disks + `} / node_filesystem_size_bytes{` + disks + `} < 0.3`,
		Summary:     `The file system {{ $labels.mountpoint }} will be full in less than 4 hours.`,
		Description: `At the pace of the last hour {{ $labels.mountpoint }} on {{ $labels.device }} would have {{ $value | humanize1024 }}B left in 4 hours.`,
	},
	{
		Name: "MemoryLow", Severity: Warning, For: time.Minute,
		Expr:        `node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes < 0.05`,
		Summary:     `The machine has {{ $value | humanizePercentage }} of its memory left.`,
		Description: `{{ $value | humanizePercentage }} of the memory of {{ $labels.instance }} is available; below 5 % the kernel soon kills something.`,
	},
	{
		Name: "ClockSkew", Severity: Warning, For: time.Minute,
		Expr:        `abs(node_time_seconds - timestamp(node_time_seconds)) > 2`,
		Summary:     `The clock of {{ $labels.instance }} is off by {{ $value | printf "%.1f" }} s.`,
		Description: `The clocks of {{ $labels.instance }} and of Prometheus differ by {{ $value | printf "%.1f" }} s. Tokens, leases and recovery to a time go wrong.`,
	},
	{
		Name: "ProcessRestarts", Severity: Warning,
		Expr:        `changes(process_start_time_seconds[15m]) >= 3`,
		Summary:     `{{ $labels.component }} keeps restarting.`,
		Description: `{{ $labels.component }} has started {{ $value }} times within 15 minutes.`,
	},
	{
		Name: "FileDescriptorsLow", Severity: Warning, For: time.Minute,
		Expr:        `process_open_fds / process_max_fds > 0.8`,
		Summary:     `{{ $labels.component }} uses {{ $value | humanizePercentage }} of its file descriptors.`,
		Description: `{{ $labels.component }} has {{ $value | humanizePercentage }} of the files and connections open that it may; then it accepts no more.`,
	},
}
