package kubernetes

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"fournines/gateway"
	"fournines/pgproxy"
	"fournines/proxyconfig"
	"fournines/redisproxy"
	"fournines/spec"
	"fournines/topology"
)

const (
	appGateway    = "gateway"
	appPGProxy    = "pgproxy"
	appRedisproxy = "redisproxy"

	gatewayPort = 8080
	metricsPort = 9101

	portMetrics = "metrics"

	configDirectory = "/etc/fournines/config"
	secretDirectory = "/etc/fournines/secrets"
	configName      = "config.yaml"

	// proxyUser is the account of our image.
	proxyUser = 65532
)

// proxy is one of our three, in one zone.
type proxy struct {
	app, zone string
	config    any
	port      string
	number    int32
	resources corev1.ResourceRequirements
	strategy  appsv1.DeploymentStrategy
	// drain is how long it takes to stop, without lifecycle.
	drain time.Duration
	// lifecycle keeps one at work that does not announce its end itself.
	lifecycle *corev1.Lifecycle
	// secrets are the keys that it reads, as files, by Secret.
	secrets map[string][]string
	// ca is a Secret with a certificate authority; empty is none.
	ca string
}

// proxiesLayer has the three proxies in each full zone: pods of a zone know where
// they stand, and each Service leads to those of the caller's zone first.
func (b *builder) proxiesLayer() ([]File, error) {
	var files []File
	for _, app := range []struct {
		name  string
		ports []corev1.ServicePort
		make  func(zone string) (proxy, error)
	}{
		{appGateway, []corev1.ServicePort{port("http", 80)}, b.gateway},
		{appPGProxy, []corev1.ServicePort{port("postgres", postgresPort)}, b.pgproxy},
		{appRedisproxy, []corev1.ServicePort{port("redis", redisPort)}, b.redisproxy},
	} {
		var objects []Object
		for _, zone := range b.spec.FullZones() {
			p, err := app.make(zone)
			if err != nil {
				return nil, err
			}
			made, err := b.proxy(p)
			if err != nil {
				return nil, fmt.Errorf("%s of zone %s: %w", app.name, zone, err)
			}
			objects = append(objects, made...)
		}
		objects = append(objects, b.service(app.name, app.name, app.ports...), b.budget(app.name))
		files = append(files, File{app.name + ".yaml", objects})
	}
	return files, nil
}

// proxy makes the Deployment of p and its configuration.
func (b *builder) proxy(p proxy) ([]Object, error) {
	text, err := yaml.Marshal(p.config)
	if err != nil {
		return nil, fmt.Errorf("write its configuration: %w", err)
	}
	name := p.app + "-" + p.zone
	config := b.configMap(name, map[string]string{configName: string(text)})
	config.Labels = with(b.labels(p.app), labelZone, p.zone)
	mounts := []corev1.VolumeMount{{Name: "config", MountPath: configDirectory, ReadOnly: true}, {Name: "secrets", MountPath: secretDirectory, ReadOnly: true}}
	secrets := &corev1.ProjectedVolumeSource{DefaultMode: ptr(int32(0o440))}
	for _, name := range slices.Sorted(maps.Keys(p.secrets)) {
		source := &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: name}}
		for _, key := range p.secrets[name] {
			source.Items = append(source.Items, corev1.KeyToPath{Key: key, Path: name + "/" + key})
		}
		secrets.Sources = append(secrets.Sources, corev1.VolumeProjection{Secret: source})
	}
	volumes := []corev1.Volume{
		{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: config.Name}}}},
		{Name: "secrets", VolumeSource: corev1.VolumeSource{Projected: secrets}},
	}
	if p.ca != "" {
		mounts = append(mounts, corev1.VolumeMount{Name: "ca", MountPath: caDirectory, ReadOnly: true})
		volumes = append(volumes, corev1.Volume{Name: "ca", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{
			SecretName: p.ca, Items: []corev1.KeyToPath{{Key: caKey, Path: caKey}},
		}}})
	}
	d := b.deployment(p.app, workload{
		name: name, zone: p.zone, replicas: ptr(int32(b.k.ProxiesPerZone)), strategy: p.strategy, labels: map[string]string{labelZone: p.zone},
		annotations: b.scraped(metricsPort),
		pod: corev1.PodSpec{
			PriorityClassName: b.priority(priorityServing), SecurityContext: user(proxyUser),
			TerminationGracePeriodSeconds: ptr(int64(p.drain/time.Second) + pauseSeconds + 10),
			Containers: []corev1.Container{{
				Name: p.app, Image: b.k.Image, Args: []string{p.app, "--config", configDirectory + "/" + configName},
				Ports:     []corev1.ContainerPort{containerPort(p.port, p.number), containerPort(portMetrics, metricsPort)},
				Env:       []corev1.EnvVar{env("GOMEMLIMIT", "900MiB")}, // of the limit of 1 GiB
				Lifecycle: p.lifecycle,
				Resources: p.resources, SecurityContext: locked(), VolumeMounts: mounts,
				StartupProbe:   probe(httpGet("/livez", portMetrics), 1, 2, 60),
				ReadinessProbe: probe(httpGet("/readyz", portMetrics), 2, 2, 2),
				LivenessProbe:  probe(httpGet("/livez", portMetrics), 10, 5, 6),
			}},
			Volumes: volumes,
		},
	})
	return []Object{config, d}, nil
}

// secretFile is where a proxy finds a key of a Secret.
func secretFile(secret, key string) string { return secretDirectory + "/" + secret + "/" + key }

// announce is how long a gateway that is asked to stop goes on taking new work,
// with the word that it ends, so that the nodes have time to forget it.
const announce = pauseSeconds * time.Second

func (b *builder) gateway(zone string) (proxy, error) {
	cfg := gateway.DefaultConfig()
	proxyconfig.Gateway(&cfg, b.spec, len(b.spec.FullZones())*b.k.ProxiesPerZone)
	cfg.Listen, cfg.AdminListen, cfg.Zone = listen(gatewayPort), listen(metricsPort), zone
	for _, z := range b.spec.FullZones() {
		name := appAPI + "-" + z
		cfg.Upstreams = append(cfg.Upstreams, gateway.Upstream{
			Scheme: "http", Endpoint: topology.Endpoint{Name: name, Zone: z, Address: net.JoinHostPort(name, strconv.Itoa(apiPort))},
		})
	}
	secrets := map[string][]string{secretProxies: {keyGatewayAdmin}}
	cfg.Admin.TokenFile = secretFile(secretProxies, keyGatewayAdmin)
	// Streams end by themselves: as long as Dify lets a run take.
	cfg.Drain.Announce = announce
	cfg.Drain.Timeout = max(cfg.Drain.Timeout, time.Duration(b.version.longestRun)*time.Second)
	if b.k.Redis.Provider == spec.ProviderOperator || !b.k.Redis.TLS {
		nodes, err := b.redisNodes()
		if err != nil {
			return proxy{}, err
		}
		for _, n := range nodes {
			cfg.Redis.Nodes = append(cfg.Redis.Nodes, n.Address)
		}
		cfg.Redis.PasswordFile = secretFile(secretRedisCluster, keyPassword)
		secrets[secretRedisCluster] = []string{keyPassword}
		if b.spec.Gateway.Jobs.Enabled {
			cfg.Jobs.KeyFile = secretFile(secretProxies, keyJobs)
			cfg.Jobs.Webhook.SecretFile = secretFile(secretProxies, keyWebhook)
			secrets[secretProxies] = append(secrets[secretProxies], keyJobs, keyWebhook)
		}
	}
	return proxy{
		app: appGateway, zone: zone, config: cfg, port: "http", number: gatewayPort, secrets: secrets,
		strategy: rolling(), resources: resources("500m", "512Mi", "", "1Gi"), drain: cfg.Drain.Timeout,
	}, nil
}

func (b *builder) pgproxy(zone string) (proxy, error) {
	cfg := pgproxy.DefaultConfig()
	proxyconfig.PGProxy(&cfg, b.spec)
	cfg.Listen, cfg.AdminListen, cfg.Zone = listen(postgresPort), listen(metricsPort), zone
	// The connections of a zone are shared by its proxies, and no rollout adds one.
	cfg.Pool.Size = max(cfg.Pool.Size/b.k.ProxiesPerZone, 1)
	var err error
	if cfg.Backends, err = b.postgresServers(); err != nil {
		return proxy{}, err
	}
	cfg.Users = []pgproxy.User{{Name: accountDify, PasswordFile: secretFile(secretPostgresDify, keyPassword)}}
	cfg.Probe.User, cfg.Probe.PasswordFile = accountProbe, secretFile(secretPostgresProbe, keyPassword)
	cfg.Admin.TokenFile = secretFile(secretProxies, keyPGProxyAdmin)
	tls, ca := b.postgresTLS()
	cfg.ServerTLS = tls
	cfg.DrainTimeout = time.Minute
	return proxy{
		app: appPGProxy, zone: zone, config: cfg, port: "postgres", number: postgresPort, ca: ca,
		secrets:  map[string][]string{secretPostgresDify: {keyPassword}, secretPostgresProbe: {keyPassword}, secretProxies: {keyPGProxyAdmin}},
		strategy: replacing(), resources: resources("500m", "256Mi", "", "1Gi"), drain: cfg.DrainTimeout, lifecycle: pause(),
	}, nil
}

func (b *builder) redisproxy(zone string) (proxy, error) {
	cfg := redisproxy.DefaultConfig()
	proxyconfig.Redisproxy(&cfg, b.spec)
	cfg.Listen, cfg.AdminListen, cfg.Zone = listen(redisPort), listen(metricsPort), zone
	var err error
	if cfg.Nodes, err = b.redisNodes(); err != nil {
		return proxy{}, err
	}
	cfg.Upstream.PasswordFile = secretFile(secretRedisCluster, keyPassword)
	cfg.Upstream.TLS.Enabled = b.k.Redis.Provider == spec.ProviderExternal && b.k.Redis.TLS
	cfg.Users = []redisproxy.User{{Name: accountDify, PasswordFile: secretFile(secretRedisDify, keyPassword)}}
	return proxy{
		app: appRedisproxy, zone: zone, config: cfg, port: "redis", number: redisPort,
		secrets:  map[string][]string{secretRedisCluster: {keyPassword}, secretRedisDify: {keyPassword}},
		strategy: rolling(), resources: resources("500m", "256Mi", "", "1Gi"), drain: cfg.Timeouts.Drain, lifecycle: pause(),
	}, nil
}

// replacing stops a pod before the next one starts, one at a time.
func replacing() appsv1.DeploymentStrategy {
	s := rolling()
	s.RollingUpdate.MaxUnavailable, s.RollingUpdate.MaxSurge = ptr(intstr.FromInt32(1)), ptr(intstr.FromInt32(0))
	return s
}

func listen(port int) string { return ":" + strconv.Itoa(port) }

// scraped are the annotations by which a Prometheus without its operator finds
// a pod.
func (b *builder) scraped(port int) map[string]string {
	if b.k.Observability.Provider == spec.ProviderOperator {
		return nil
	}
	return map[string]string{"prometheus.io/scrape": "true", "prometheus.io/port": strconv.Itoa(port), "prometheus.io/path": "/metrics"}
}
