package kubernetes

import (
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"fournines/kubernetes/operator"
)

const (
	appAPI       = "dify-api"
	appBeat      = "dify-beat"
	appMigration = "dify-migration"
	appWeb       = "dify-web"
	appSandbox   = "dify-sandbox"
	appSSRFProxy = "dify-ssrf-proxy"
	appPlugins   = "dify-plugin-daemon"

	apiPort     = 5001
	webPort     = 3000
	sandboxPort = 8194
	ssrfPort    = 3128
	pluginPort  = 5002

	// difyUser is the account in Dify's images.
	difyUser = 1001
	// squidUser is "proxy" in the image of squid.
	squidUser = 13

	// workerGrace is how long a worker that is asked to stop may work on the tasks
	// it has, in seconds: Celery has acknowledged them already, so a task that is
	// cut off is lost.
	workerGrace = 1800

	// brokerDatabase is the logical database of Celery's queues.
	brokerDatabase = "1"

	squidImage = "ubuntu/squid:5.2-22.04_beta"
)

// image is one of Dify's, unless the spec names another.
func (b *builder) image(key, image string) string {
	if own := b.k.Dify.Images[key]; own != "" {
		return own
	}
	return image
}

func (b *builder) apiImage() string { return b.image("api", "langgenius/dify-api:"+b.version.version) }

// workerNames are the applications that take tasks.
func (b *builder) workerNames() []string {
	var names []string
	for _, g := range b.version.queues {
		names = append(names, "dify-"+g.name)
	}
	return names
}

// difyConfig is what all processes of Dify's api image are told, without
// secrets.
func (b *builder) difyConfig() *corev1.ConfigMap {
	public, s3 := "https://"+b.k.Host, b.k.ObjectStorage
	vars := map[string]string{
		"EDITION": "SELF_HOSTED", "DEPLOY_ENV": "PRODUCTION", "LOG_LEVEL": "INFO", "LOG_FILE": "",
		"CONSOLE_API_URL": public, "CONSOLE_WEB_URL": public, "SERVICE_API_URL": public, "APP_API_URL": public, "APP_WEB_URL": public, "FILES_URL": public,
		"CONSOLE_CORS_ALLOW_ORIGINS": public, "WEB_API_CORS_ALLOW_ORIGINS": "*",
		"INTERNAL_FILES_URL": "http://" + appAPI + ":" + strconv.Itoa(apiPort),
		// One Job migrates; replicas that did would race.
		"MIGRATION_ENABLED": "false",
		"DB_HOST":           appPGProxy, "DB_PORT": strconv.Itoa(postgresPort), "DB_USERNAME": accountDify, "DB_DATABASE": "dify",
		"SQLALCHEMY_POOL_RECYCLE": "300",
		"REDIS_HOST":              appRedisproxy, "REDIS_PORT": strconv.Itoa(redisPort), "REDIS_USERNAME": accountDify, "REDIS_DB": "0", "REDIS_USE_SSL": "false",
		"VECTOR_STORE": "milvus", "MILVUS_URI": b.milvusURI(), "MILVUS_DATABASE": "default",
		"STORAGE_TYPE": "s3", "S3_ENDPOINT": s3.Endpoint, "S3_REGION": s3.Region, "S3_BUCKET_NAME": s3.Bucket, "S3_ADDRESS_STYLE": s3.AddressStyle,
		"CODE_EXECUTION_ENDPOINT": "http://" + appSandbox + ":" + strconv.Itoa(sandboxPort),
		"SSRF_PROXY_HTTP_URL":     ssrfProxyURL(), "SSRF_PROXY_HTTPS_URL": ssrfProxyURL(),
		"CELERY_WORKER_AMOUNT": "4",
		// The root file system is read-only.
		"HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1",
	}
	if host, port, secure := hostPort(b.milvusURI()); host != "" {
		// The names that 0.6.9 reads.
		vars["MILVUS_HOST"], vars["MILVUS_PORT"], vars["MILVUS_SECURE"] = host, port, strconv.FormatBool(secure)
	}
	if b.version.plugins() {
		vars["PLUGIN_DAEMON_URL"] = "http://" + appPlugins + ":" + strconv.Itoa(pluginPort)
		vars["ENDPOINT_URL_TEMPLATE"] = public + "/e/{hook_id}"
	}
	maps.Copy(vars, b.k.Dify.Env)
	return b.configMap("dify-config", vars)
}

func ssrfProxyURL() string { return "http://" + appSSRFProxy + ":" + strconv.Itoa(ssrfPort) }

func hostPort(raw string) (host, port string, secure bool) {
	u, err := url.Parse(raw)
	if err != nil {
		return "", "", false
	}
	port = u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Hostname(), port, u.Scheme == "https"
}

// difySecrets are what all processes of the api image are told in secret.
func (b *builder) difySecrets() []corev1.EnvVar {
	vars := []corev1.EnvVar{
		secretEnv("SECRET_KEY", secretDify, keySecretKey),
		secretEnv("DB_PASSWORD", secretPostgresDify, keyPassword),
		secretEnv("REDIS_PASSWORD", secretRedisDify, keyPassword),
		env("CELERY_BROKER_URL", "redis://"+accountDify+":$(REDIS_PASSWORD)@"+appRedisproxy+":"+strconv.Itoa(redisPort)+"/"+brokerDatabase),
		secretEnv("MILVUS_USER", secretMilvus, keyUsername),
		secretEnv("MILVUS_PASSWORD", secretMilvus, keyPassword),
		secretEnv("S3_ACCESS_KEY", secretStorage, keyStorageAccess),
		secretEnv("S3_SECRET_KEY", secretStorage, keyStorageSecret),
		secretEnv("CODE_EXECUTION_API_KEY", secretDify, keySandbox),
	}
	if b.version.plugins() {
		vars = append(vars, secretEnv("PLUGIN_DAEMON_KEY", secretDify, keyPluginKey), secretEnv("INNER_API_KEY_FOR_PLUGIN", secretDify, keyPluginInner))
	}
	return vars
}

// difyContainer is a process of the api image in one of its modes. What the spec
// sets, more does not.
func (b *builder) difyContainer(name, mode string, more ...corev1.EnvVar) corev1.Container {
	more = slices.DeleteFunc(more, func(e corev1.EnvVar) bool { _, set := b.k.Dify.Env[e.Name]; return set })
	return corev1.Container{
		Name: name, Image: b.apiImage(), SecurityContext: locked(),
		EnvFrom:   []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: b.difyConfig().Name}}}},
		Env:       slices.Concat([]corev1.EnvVar{env("MODE", mode)}, b.difySecrets(), more),
		Resources: resources("1", "2Gi", "2", "4Gi"),
		VolumeMounts: []corev1.VolumeMount{
			{Name: "tmp", MountPath: "/tmp"}, {Name: "storage", MountPath: "/app/api/storage"},
		},
	}
}

// difyPod is a pod with one process of the api image. Uploads are in the object
// storage; what Dify puts into its own folder besides is scratch.
func difyPod(priority string, grace int64, c corev1.Container) corev1.PodSpec {
	return corev1.PodSpec{
		PriorityClassName: priority, SecurityContext: user(difyUser), TerminationGracePeriodSeconds: ptr(grace),
		Containers: []corev1.Container{c}, Volumes: []corev1.Volume{scratch("tmp", "2Gi"), scratch("storage", "1Gi")},
	}
}

// migrationLayer brings the schema up to date, once for each version of Dify: the
// Job's name is the version's, and a Job that has run stays.
func (b *builder) migrationLayer() ([]File, error) {
	mode := "migration"
	c := b.difyContainer("migration", mode, env("MIGRATION_ENABLED", "true"))
	c.Command = b.version.migrate
	pod := difyPod(b.priority(priorityServing), 60, c)
	pod.RestartPolicy = corev1.RestartPolicyNever
	pod.EnableServiceLinks, pod.AutomountServiceAccountToken = ptr(false), ptr(false)
	job := &batchv1.Job{
		TypeMeta:   metav1.TypeMeta{APIVersion: "batch/v1", Kind: "Job"},
		ObjectMeta: b.meta(appMigration+"-"+strings.ReplaceAll(b.version.version, ".", "-"), appMigration),
		Spec: batchv1.JobSpec{
			BackoffLimit: ptr(int32(3)), Completions: ptr(int32(1)), Parallelism: ptr(int32(1)), ActiveDeadlineSeconds: ptr(int64(3600)),
			// Never two at a time, also when a node is silent.
			PodReplacementPolicy: ptr(batchv1.Failed),
			Template:             corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: b.labels(appMigration)}, Spec: pod},
		},
	}
	return []File{{"config.yaml", []Object{b.difyConfig()}}, {"migration.yaml", []Object{job}}}, nil
}

// difyLayer is the application.
func (b *builder) difyLayer() ([]File, error) {
	files := []File{
		{"api.yaml", b.api()}, {"workers.yaml", b.workers()}, {"beat.yaml", []Object{b.beat()}},
		{"web.yaml", b.web()}, {"sandbox.yaml", b.sandbox()}, {"ssrf-proxy.yaml", b.ssrfProxy()},
	}
	if b.version.plugins() {
		files = append(files, File{"plugin-daemon.yaml", b.pluginDaemon()})
	}
	return files, nil
}

func (b *builder) api() []Object {
	c := b.difyContainer("api", "api",
		// gunicorn cuts streams 30 s after it was asked to stop unless it is told.
		env("GUNICORN_CMD_ARGS", "--graceful-timeout "+strconv.FormatInt(b.version.longestRun, 10)), env("GUNICORN_TIMEOUT", "360"),
		// Python uses one core; more requests than ten at a time need places.
		env("SERVER_WORKER_AMOUNT", "1"), env("SERVER_WORKER_CONNECTIONS", "200"))
	c.Ports = []corev1.ContainerPort{containerPort("http", apiPort)}
	c.StartupProbe = probe(httpGet("/health", "http"), 5, 5, 60)
	// It reads the database: an instance that cannot is not ready. It may take as
	// long as a failover before that is believed, else one would take out all.
	c.ReadinessProbe = probe(httpGet(b.version.readiness, "http"), 5, 5, 8)
	c.LivenessProbe = probe(httpGet("/health", "http"), 10, 5, 6)
	c.Lifecycle = pause()
	d := b.deployment(appAPI, workload{
		name: appAPI, strategy: rolling(),
		pod: difyPod(b.priority(priorityServing), b.version.longestRun+pauseSeconds+30, c),
	})
	objects := []Object{d, b.hpa(), b.budget(appAPI), b.service(appAPI, appAPI, port("http", apiPort))}
	for _, zone := range b.spec.FullZones() {
		objects = append(objects, b.zoneService(appAPI, zone, b.selector(appAPI), port("http", apiPort)))
	}
	return objects
}

// hpa scales the api by CPU: up at once, down slowly, since each pod that goes
// has streams to end.
func (b *builder) hpa() Object {
	a := b.spec.Autoscale
	return &autoscalingv2.HorizontalPodAutoscaler{
		TypeMeta: metav1.TypeMeta{APIVersion: "autoscaling/v2", Kind: "HorizontalPodAutoscaler"}, ObjectMeta: b.meta(appAPI, appAPI),
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: appAPI},
			MinReplicas:    ptr(int32(a.MinReplicas)), MaxReplicas: int32(a.MaxReplicas),
			Metrics: []autoscalingv2.MetricSpec{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
				Name:   corev1.ResourceCPU,
				Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: ptr(int32(a.TargetCPUPercent))},
			}}},
			Behavior: ptr(behavior(15)),
		},
	}
}

// behavior doubles within period seconds when it has to, and takes one pod away
// in two minutes after ten minutes of less load.
func behavior(period int32) autoscalingv2.HorizontalPodAutoscalerBehavior {
	return autoscalingv2.HorizontalPodAutoscalerBehavior{
		ScaleUp: &autoscalingv2.HPAScalingRules{
			StabilizationWindowSeconds: ptr(int32(0)), SelectPolicy: ptr(autoscalingv2.MaxChangePolicySelect),
			Policies: []autoscalingv2.HPAScalingPolicy{
				{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: period},
				{Type: autoscalingv2.PodsScalingPolicy, Value: 4, PeriodSeconds: period},
			},
		},
		ScaleDown: &autoscalingv2.HPAScalingRules{
			StabilizationWindowSeconds: ptr(int32(600)), SelectPolicy: ptr(autoscalingv2.MinChangePolicySelect),
			Policies: []autoscalingv2.HPAScalingPolicy{{Type: autoscalingv2.PodsScalingPolicy, Value: 1, PeriodSeconds: 120}},
		},
	}
}

// workers are one Deployment for each group of queues, scaled by their lengths.
func (b *builder) workers() []Object {
	var objects []Object
	auth := operator.NewTriggerAuthentication(b.meta("dify-queues", "dify-worker"))
	for parameter, key := range map[string]string{"username": keyUsername, "password": keyPassword} {
		auth.Spec.SecretTargetRef = append(auth.Spec.SecretTargetRef, operator.KEDASecret{Parameter: parameter, Name: secretRedisDify, Key: key})
	}
	slices.SortFunc(auth.Spec.SecretTargetRef, func(a, b operator.KEDASecret) int { return strings.Compare(a.Parameter, b.Parameter) })
	objects = append(objects, auth)
	for i, g := range b.version.queues {
		app := b.workerNames()[i]
		c := b.difyContainer("worker", "worker", env(b.version.queueVariable, strings.Join(g.queues, ",")))
		// A worker that has silently stopped to consume does not answer; one whose
		// broker is away for minutes must not be restarted with its tasks.
		c.LivenessProbe = probe(corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{
			"sh", "-c", `celery --broker "$CELERY_BROKER_URL" inspect ping --destination "celery@$HOSTNAME" --timeout 20`,
		}}}, 60, 45, 10)
		c.LivenessProbe.InitialDelaySeconds = 60
		d := b.deployment(app, workload{name: app, strategy: rolling(), pod: difyPod(b.priority(priorityWork), workerGrace, c)})
		objects = append(objects, d, b.budget(app), b.queueScaler(app, g.queues, auth.Name))
	}
	return objects
}

// queueScaler adds workers while tasks wait. Celery's tasks leave their queue
// when a worker takes them, so a short queue does not mean that workers are idle:
// it takes them away slowly, and those that go finish what they have.
func (b *builder) queueScaler(app string, queues []string, auth string) Object {
	d := b.k.Dify
	s := operator.NewScaledObject(b.meta(app, app))
	s.Spec = operator.ScaledObjectSpec{
		ScaleTargetRef: operator.LocalReference{Name: app}, MinReplicaCount: d.Workers, MaxReplicaCount: d.MaxWorkers, PollingInterval: 10,
		// While Redis fails over no length can be read; workers stay.
		Fallback: operator.KEDAFallback{FailureThreshold: 3, Replicas: d.Workers, Behavior: "currentReplicasIfHigher"},
		Advanced: operator.KEDAAdvanced{HorizontalPodAutoscalerConfig: operator.KEDAHPAConfig{Behavior: behavior(30)}},
	}
	for _, q := range queues {
		s.Spec.Triggers = append(s.Spec.Triggers, operator.KEDATrigger{
			Type: "redis",
			Metadata: map[string]string{
				"address":  appRedisproxy + "." + b.k.Namespace + ".svc:" + strconv.Itoa(redisPort),
				"listName": q, "listLength": strconv.Itoa(d.TasksPerWorker), "databaseIndex": brokerDatabase,
			},
			AuthenticationRef: operator.LocalReference{Name: auth},
		})
	}
	return s
}

// beat sends what is due, once: a second one would send everything twice.
func (b *builder) beat() Object {
	c := b.difyContainer("beat", "beat")
	// The image's own command keeps its schedule in a folder that is read-only here.
	c.Command = []string{"celery", "-A", "app.celery", "beat", "--loglevel", "INFO", "--schedule", "/tmp/celerybeat-schedule", "--pidfile="}
	c.Resources = resources("100m", "512Mi", "1", "1Gi")
	return b.deployment(appBeat, workload{
		name: appBeat, replicas: ptr(int32(1)), strategy: appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType},
		pod: difyPod(b.priority(priorityServing), 30, c),
	})
}

// stateless is a Deployment of two pods with a Service.
func (b *builder) stateless(app string, pod corev1.PodSpec, p corev1.ServicePort) []Object {
	d := b.deployment(app, workload{name: app, replicas: ptr(int32(len(b.spec.FullZones()))), strategy: rolling(), pod: pod})
	return []Object{d, b.budget(app), b.service(app, app, p)}
}

func (b *builder) web() []Object {
	public := "https://" + b.k.Host
	return b.stateless(appWeb, corev1.PodSpec{
		PriorityClassName: b.priority(priorityServing), SecurityContext: user(difyUser), TerminationGracePeriodSeconds: ptr(int64(60)),
		Containers: []corev1.Container{{
			Name: "web", Image: b.image("web", "langgenius/dify-web:"+b.version.version), SecurityContext: locked(),
			Env: []corev1.EnvVar{
				env("CONSOLE_API_URL", public), env("APP_API_URL", public), env("NEXT_TELEMETRY_DISABLED", "1"),
				env("HOME", "/tmp"), env("PM2_HOME", "/tmp/.pm2"),
			},
			Ports:          []corev1.ContainerPort{containerPort("http", webPort)},
			Resources:      resources("100m", "256Mi", "1", "1Gi"),
			StartupProbe:   probe(httpGet("/", "http"), 5, 5, 24),
			ReadinessProbe: probe(httpGet("/", "http"), 5, 5, 3),
			LivenessProbe:  probe(httpGet("/", "http"), 10, 5, 6),
			Lifecycle:      pause(),
			VolumeMounts:   []corev1.VolumeMount{{Name: "tmp", MountPath: "/tmp"}, {Name: "cache", MountPath: "/app/web/.next/cache"}},
		}},
		Volumes: []corev1.Volume{scratch("tmp", "256Mi"), scratch("cache", "512Mi")},
	}, port("http", webPort))
}

// sandbox runs what users write. It changes its root directory and its account
// for each piece of code, for which it must start as root and may write; it can
// reach nothing but the proxy below.
func (b *builder) sandbox() []Object {
	return b.stateless(appSandbox, corev1.PodSpec{
		PriorityClassName: b.priority(priorityWork), TerminationGracePeriodSeconds: ptr(int64(90)),
		SecurityContext: &corev1.PodSecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
		Containers: []corev1.Container{{
			Name: "sandbox", Image: b.image("sandbox", "langgenius/dify-sandbox:"+b.version.sandbox),
			SecurityContext: &corev1.SecurityContext{
				AllowPrivilegeEscalation: ptr(false),
				Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"SYS_CHROOT", "SETUID", "SETGID", "CHOWN"}},
			},
			Env: []corev1.EnvVar{
				secretEnv("API_KEY", secretDify, keySandbox), env("GIN_MODE", "release"), env("WORKER_TIMEOUT", "15"), env("ENABLE_NETWORK", "true"),
				env("HTTP_PROXY", ssrfProxyURL()), env("HTTPS_PROXY", ssrfProxyURL()), env("SANDBOX_PORT", strconv.Itoa(sandboxPort)),
			},
			Ports:          []corev1.ContainerPort{containerPort("http", sandboxPort)},
			Resources:      resources("500m", "512Mi", "2", "1Gi"),
			StartupProbe:   probe(httpGet("/health", "http"), 5, 5, 24),
			ReadinessProbe: probe(httpGet("/health", "http"), 5, 5, 3),
			LivenessProbe:  probe(httpGet("/health", "http"), 10, 5, 6),
			Lifecycle:      pause(),
		}},
	}, port("http", sandboxPort))
}

// ssrfProxy is the way out for what users can make Dify fetch: to the internet,
// never into the cluster.
func (b *builder) ssrfProxy() []Object {
	config := b.configMap(appSSRFProxy, map[string]string{"squid.conf": squidConfig()})
	tcp := corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("proxy")}}
	return append([]Object{config}, b.stateless(appSSRFProxy, corev1.PodSpec{
		PriorityClassName: b.priority(priorityWork), SecurityContext: user(squidUser), TerminationGracePeriodSeconds: ptr(int64(90)),
		Containers: []corev1.Container{{
			Name: "squid", Image: b.image("squid", squidImage), SecurityContext: locked(),
			Command:        []string{"/usr/sbin/squid", "-N", "-f", "/etc/fournines/squid.conf"},
			Ports:          []corev1.ContainerPort{containerPort("proxy", ssrfPort)},
			Resources:      resources("100m", "128Mi", "1", "512Mi"),
			StartupProbe:   probe(tcp, 2, 2, 30),
			ReadinessProbe: probe(tcp, 5, 2, 3),
			LivenessProbe:  probe(tcp, 10, 5, 6),
			Lifecycle:      pause(),
			VolumeMounts: []corev1.VolumeMount{
				{Name: "config", MountPath: "/etc/fournines", ReadOnly: true}, {Name: "run", MountPath: "/run"},
				{Name: "spool", MountPath: "/var/spool/squid"}, {Name: "log", MountPath: "/var/log/squid"},
			},
		}},
		Volumes: []corev1.Volume{
			{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: config.Name}}}},
			scratch("run", "16Mi"), scratch("spool", "64Mi"), scratch("log", "64Mi"),
		},
	}, port("proxy", ssrfPort))...)
}

// squidConfig sends requests to the internet and nowhere else, keeps nothing and
// writes its log to standard output.
func squidConfig() string {
	return strings.Join([]string{
		"http_port " + strconv.Itoa(ssrfPort),
		"acl private dst " + strings.Join(privateNetworks(), " "),
		"acl web port 80 443",
		"acl CONNECT method CONNECT",
		"acl tls port 443",
		"http_access deny private",
		"http_access deny CONNECT !tls",
		"http_access allow web",
		"http_access deny all",
		"cache deny all",
		"access_log stdio:/dev/stdout",
		"cache_log /dev/stderr",
		"pid_filename none",
		"shutdown_lifetime 30 seconds",
		"forwarded_for delete",
		"via off",
	}, "\n") + "\n"
}

// pluginDaemon runs plugins. Its makers do not support more than one; what it
// installs is in the object storage, and it builds its working folder again
// where it is started next, in any zone.
func (b *builder) pluginDaemon() []Object {
	s3 := b.k.ObjectStorage
	c := corev1.Container{
		Name: "plugin-daemon", Image: b.image("pluginDaemon", "langgenius/dify-plugin-daemon:"+b.version.pluginDaemon), SecurityContext: locked(),
		Env: slices.Concat(sorted(map[string]string{
			"DB_HOST": appPGProxy, "DB_PORT": strconv.Itoa(postgresPort), "DB_USERNAME": accountDify, "DB_DATABASE": pluginDatabase, "DB_SSL_MODE": "disable",
			"REDIS_HOST": appRedisproxy, "REDIS_PORT": strconv.Itoa(redisPort), "REDIS_USERNAME": accountDify,
			"SERVER_PORT": strconv.Itoa(pluginPort), "DIFY_INNER_API_URL": "http://" + appAPI + ":" + strconv.Itoa(apiPort),
			"PLUGIN_REMOTE_INSTALLING_ENABLED": "false", "FORCE_VERIFYING_SIGNATURE": "true", "PYTHON_ENV_INIT_TIMEOUT": "300",
			"PLUGIN_WORKING_PATH": "/app/storage/cwd", "PLUGIN_STORAGE_TYPE": "aws_s3", "PLUGIN_STORAGE_OSS_BUCKET": s3.Bucket,
			"PLUGIN_INSTALLED_PATH": "plugins/installed", "PLUGIN_PACKAGE_CACHE_PATH": "plugins/packages", "PLUGIN_MEDIA_CACHE_PATH": "plugins/assets",
			"S3_USE_AWS": "false", "S3_ENDPOINT": s3.Endpoint, "S3_USE_PATH_STYLE": strconv.FormatBool(s3.AddressStyle == "path"), "AWS_REGION": s3.Region,
			"HOME": "/tmp", "UV_CACHE_DIR": "/tmp/uv",
		}), []corev1.EnvVar{
			secretEnv("DB_PASSWORD", secretPostgresDify, keyPassword), secretEnv("REDIS_PASSWORD", secretRedisDify, keyPassword),
			secretEnv("SERVER_KEY", secretDify, keyPluginKey), secretEnv("DIFY_INNER_API_KEY", secretDify, keyPluginInner),
			secretEnv("AWS_ACCESS_KEY", secretStorage, keyStorageAccess), secretEnv("AWS_SECRET_KEY", secretStorage, keyStorageSecret),
		}),
		Ports:          []corev1.ContainerPort{containerPort("http", pluginPort)},
		Resources:      resources("1", "2Gi", "2", "4Gi"),
		StartupProbe:   probe(httpGet("/health/check", "http"), 5, 5, 60),
		ReadinessProbe: probe(httpGet("/health/check", "http"), 5, 5, 3),
		LivenessProbe:  probe(httpGet("/health/check", "http"), 10, 5, 6),
		Lifecycle:      pause(),
		VolumeMounts:   []corev1.VolumeMount{{Name: "storage", MountPath: "/app/storage"}, {Name: "tmp", MountPath: "/tmp"}},
	}
	d := b.deployment(appPlugins, workload{
		name: appPlugins, replicas: ptr(int32(1)), strategy: appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType},
		pod: corev1.PodSpec{
			PriorityClassName: b.priority(priorityServing), SecurityContext: user(difyUser), TerminationGracePeriodSeconds: ptr(int64(600 + pauseSeconds + 10)),
			Containers: []corev1.Container{c}, Volumes: []corev1.Volume{scratch("storage", "20Gi"), scratch("tmp", "4Gi")},
		},
	})
	return []Object{d, b.service(appPlugins, appPlugins, port("http", pluginPort))}
}
