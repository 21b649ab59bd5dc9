package kubernetes

import (
	"fmt"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"fournines/kubernetes/operator"
	"fournines/pgproxy"
	"fournines/spec"
	"fournines/topology"
)

const (
	appPostgres  = "dify-postgres"
	postgresPort = 5432
	// barman is the plugin of CloudNativePG that archives to object storage.
	barman = "barman-cloud.cloudnative-pg.io"
	// pluginDatabase is the plugin daemon's.
	pluginDatabase = "dify_plugin"
)

// postgresPods are the labels that CloudNativePG gives the servers' pods.
func postgresPods() map[string]string { return map[string]string{"cnpg.io/cluster": appPostgres} }

// postgresLayer is a CloudNativePG cluster with one server in each zone, or
// nothing when the database is somebody else's.
func (b *builder) postgresLayer() ([]File, error) {
	if b.k.Postgres.Provider == spec.ProviderExternal {
		return nil, nil
	}
	p := b.spec.Postgres
	image := b.k.Postgres.Image
	if image == "" {
		image = "ghcr.io/cloudnative-pg/postgresql:" + strconv.Itoa(p.Version)
	}
	c := operator.NewPostgresCluster(b.meta(appPostgres, appPostgres))
	c.Spec = operator.PostgresClusterSpec{
		Instances: len(b.spec.Zones), ImageName: image,
		PrimaryUpdateStrategy: "unsupervised", PrimaryUpdateMethod: "switchover",
		// The defaults let a switchover take an hour, and a failover wait for the old
		// primary as long.
		SwitchoverDelay: 40, StopDelay: 60, SmartShutdownTimeout: 15,
		EnablePDB: true, PriorityClassName: b.priority(priorityData),
		Bootstrap: operator.PostgresBootstrap{InitDB: operator.PostgresInitDB{
			Database: "dify", Owner: accountDify, DataChecksums: true, Secret: operator.LocalReference{Name: secretPostgresDify},
		}},
		PostgreSQL: operator.PostgresConfiguration{Parameters: map[string]string{
			"max_connections": strconv.Itoa(p.MaxConnections), "shared_buffers": strconv.FormatInt(int64(p.SharedBuffers)>>20, 10) + "MB",
			// Dify asks for it when it connects.
			"timezone": "UTC",
		}},
		Managed: operator.PostgresManaged{Roles: []operator.PostgresRole{{
			Name: accountProbe, Ensure: "present", Comment: "pgproxy finds the primary with it", Login: true,
			PasswordSecret: operator.LocalReference{Name: secretPostgresProbe},
		}}},
		Affinity: operator.PostgresAffinity{
			EnablePodAntiAffinity: true, PodAntiAffinityType: "required", TopologyKey: topologyZone,
			NodeAffinity: b.inZones(b.zoneNames()),
		},
		Probes: operator.PostgresProbes{Readiness: operator.PostgresReadiness{Type: "streaming", MaximumLag: "16Mi"}},
		ReplicationSlots: operator.PostgresSlots{
			HighAvailability: operator.Switch{Enabled: true}, SynchronizeReplicas: operator.Switch{Enabled: true},
		},
		Resources:  resources("1", "2Gi", "", "4Gi"),
		Storage:    operator.PostgresStorage{Size: quantity(int64(b.k.Postgres.Storage)), StorageClass: b.k.StorageClass},
		WALStorage: &operator.PostgresStorage{Size: quantity(int64(b.k.Postgres.WALStorage)), StorageClass: b.k.StorageClass},
	}
	if b.version.plugins() {
		c.Spec.Bootstrap.InitDB.PostInitSQL = []string{"CREATE DATABASE " + pluginDatabase + " OWNER " + accountDify}
	}
	if p.Synchronous {
		// A commit is acknowledged when it is in two zones, and only a standby that
		// is known to have all of them is promoted.
		c.Spec.PostgreSQL.Synchronous = &operator.PostgresSynchronous{Method: "any", Number: 1, DataDurability: "required", FailoverQuorum: true}
	}
	files := []File{{"cluster.yaml", []Object{c}}}
	var services []Object
	for _, z := range b.spec.Zones {
		// pgproxy judges for itself which server is fit for what.
		s := b.zoneService(appPostgres, z.Name, postgresPods(), corev1.ServicePort{
			Name: "postgres", Port: postgresPort, TargetPort: intstr.FromInt32(postgresPort), Protocol: corev1.ProtocolTCP,
		})
		s.Spec.PublishNotReadyAddresses = true
		services = append(services, s)
	}
	files = append(files, File{"services.yaml", services})
	if b.spec.Backup.Enabled {
		c.Spec.Plugins = []operator.PostgresPlugin{{Name: barman, IsWALArchiver: true, Parameters: map[string]string{"barmanObjectName": appPostgres}}}
		files = append(files, File{"backup.yaml", b.postgresBackup()})
	}
	return files, nil
}

// postgresBackup archives WAL and base backups into the bucket.
func (b *builder) postgresBackup() []Object {
	store := operator.NewObjectStore(b.meta(appPostgres, appPostgres))
	store.Spec = operator.ObjectStoreSpec{
		RetentionPolicy: strconv.Itoa(b.spec.Backup.KeepDays) + "d",
		Configuration: operator.ObjectStoreConfiguration{
			DestinationPath: "s3://" + b.k.ObjectStorage.Bucket + "/postgres", EndpointURL: b.k.ObjectStorage.Endpoint,
			S3Credentials: operator.S3Credentials{
				AccessKeyID:     operator.KeyReference{Name: secretStorage, Key: keyStorageAccess},
				SecretAccessKey: operator.KeyReference{Name: secretStorage, Key: keyStorageSecret},
			},
			WAL: operator.ObjectStoreTransfer{Compression: "gzip"}, Data: operator.ObjectStoreTransfer{Compression: "gzip"},
		},
	}
	s := operator.NewScheduledBackup(b.meta(appPostgres, appPostgres))
	s.Spec = operator.ScheduledBackupSpec{
		// Six fields, seconds first.
		Schedule: "0 " + b.spec.Backup.Schedule, BackupOwnerReference: "self", Cluster: operator.LocalReference{Name: appPostgres},
		Method: "plugin", PluginConfiguration: operator.PluginConfiguration{Name: barman}, Target: "prefer-standby", Immediate: true,
	}
	return []Object{store, s}
}

func (b *builder) zoneNames() []string {
	var names []string
	for _, z := range b.spec.Zones {
		names = append(names, z.Name)
	}
	return names
}

// postgresServers are what pgproxy looks for the primary among.
func (b *builder) postgresServers() ([]topology.Endpoint, error) {
	var list []topology.Endpoint
	if b.k.Postgres.Provider == spec.ProviderOperator {
		for _, z := range b.spec.Zones {
			name := appPostgres + "-" + z.Name
			list = append(list, topology.Endpoint{Name: name, Zone: z.Name, Address: name + ":" + strconv.Itoa(postgresPort)})
		}
		return list, nil
	}
	for i, s := range b.k.Postgres.Servers {
		_, e, err := topology.ParseEndpoint(s)
		if err != nil {
			return nil, fmt.Errorf("kubernetes.postgres.servers[%d]: %w", i, err)
		}
		list = append(list, e)
	}
	return list, nil
}

// postgresTLS is how pgproxy encrypts towards the servers, and the Secret with
// the authority that it verifies them by; empty without one.
func (b *builder) postgresTLS() (tls pgproxy.ServerTLS, caSecret string) {
	tls = pgproxy.ServerTLS{Mode: b.k.Postgres.TLS}
	caSecret = b.k.Postgres.CASecret
	if b.k.Postgres.Provider == spec.ProviderOperator {
		// CloudNativePG makes the authority. Its certificates name its own Services,
		// not those of a zone.
		tls.Mode, caSecret = "verify-ca", appPostgres+"-ca"
	}
	if slices.Contains([]string{"verify-ca", "verify-full"}, tls.Mode) {
		tls.CAFile = caDirectory + "/" + caKey
		return tls, caSecret
	}
	return tls, ""
}

const (
	caDirectory = "/etc/fournines/ca"
	caKey       = "ca.crt"
)
