package operator

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// PostgresCluster is the Cluster of CloudNativePG 1.30.
type PostgresCluster struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              PostgresClusterSpec `json:"spec"`
}

// NewPostgresCluster returns a Cluster without a spec.
func NewPostgresCluster(meta metav1.ObjectMeta) *PostgresCluster {
	return &PostgresCluster{TypeMeta: kind("postgresql.cnpg.io/v1", "Cluster"), ObjectMeta: meta}
}

// PostgresClusterSpec is the wanted state of a PostgreSQL cluster. Delays are
// in seconds.
type PostgresClusterSpec struct {
	Instances                 int                               `json:"instances"`
	ImageName                 string                            `json:"imageName"`
	PrimaryUpdateStrategy     string                            `json:"primaryUpdateStrategy"`
	PrimaryUpdateMethod       string                            `json:"primaryUpdateMethod"`
	SwitchoverDelay           int                               `json:"switchoverDelay"`
	StopDelay                 int                               `json:"stopDelay"`
	SmartShutdownTimeout      int                               `json:"smartShutdownTimeout"`
	EnablePDB                 bool                              `json:"enablePDB"`
	PriorityClassName         string                            `json:"priorityClassName,omitempty"`
	Bootstrap                 PostgresBootstrap                 `json:"bootstrap"`
	PostgreSQL                PostgresConfiguration             `json:"postgresql"`
	Managed                   PostgresManaged                   `json:"managed"`
	Affinity                  PostgresAffinity                  `json:"affinity"`
	TopologySpreadConstraints []corev1.TopologySpreadConstraint `json:"topologySpreadConstraints,omitempty"`
	Probes                    PostgresProbes                    `json:"probes"`
	ReplicationSlots          PostgresSlots                     `json:"replicationSlots"`
	Plugins                   []PostgresPlugin                  `json:"plugins,omitempty"`
	Resources                 corev1.ResourceRequirements       `json:"resources"`
	Storage                   PostgresStorage                   `json:"storage"`
	WALStorage                *PostgresStorage                  `json:"walStorage,omitempty"`
}

// PostgresBootstrap says how the database comes to be.
type PostgresBootstrap struct {
	InitDB PostgresInitDB `json:"initdb"`
}

// PostgresInitDB makes an empty database. PostInitSQL runs once as the
// superuser, when the roles exist.
type PostgresInitDB struct {
	Database      string         `json:"database"`
	Owner         string         `json:"owner"`
	DataChecksums bool           `json:"dataChecksums"`
	Secret        LocalReference `json:"secret"`
	PostInitSQL   []string       `json:"postInitSQL,omitempty"`
}

// PostgresConfiguration is the server's own configuration.
type PostgresConfiguration struct {
	Parameters  map[string]string    `json:"parameters"`
	Synchronous *PostgresSynchronous `json:"synchronous,omitempty"`
}

// PostgresSynchronous says which commits wait for how many standbys.
type PostgresSynchronous struct {
	Method         string `json:"method"`
	Number         int    `json:"number"`
	DataDurability string `json:"dataDurability"`
	FailoverQuorum bool   `json:"failoverQuorum"`
}

// PostgresManaged are the roles that the operator keeps.
type PostgresManaged struct {
	Roles []PostgresRole `json:"roles"`
}

// PostgresRole is a role of the database.
type PostgresRole struct {
	Name           string         `json:"name"`
	Ensure         string         `json:"ensure"`
	Comment        string         `json:"comment,omitempty"`
	Login          bool           `json:"login"`
	InRoles        []string       `json:"inRoles,omitempty"`
	PasswordSecret LocalReference `json:"passwordSecret"`
}

// PostgresAffinity keeps the instances apart.
type PostgresAffinity struct {
	EnablePodAntiAffinity bool                 `json:"enablePodAntiAffinity"`
	PodAntiAffinityType   string               `json:"podAntiAffinityType"`
	TopologyKey           string               `json:"topologyKey"`
	NodeAffinity          *corev1.NodeAffinity `json:"nodeAffinity,omitempty"`
}

// PostgresProbes are the instances' probes.
type PostgresProbes struct {
	Readiness PostgresReadiness `json:"readiness"`
}

// PostgresReadiness makes a standby unready that lags too far.
type PostgresReadiness struct {
	Type       string `json:"type"`
	MaximumLag string `json:"maximumLag"`
}

// PostgresSlots keep WAL for standbys, on the one that is promoted too.
type PostgresSlots struct {
	HighAvailability    Switch `json:"highAvailability"`
	SynchronizeReplicas Switch `json:"synchronizeReplicas"`
}

// Switch turns something on.
type Switch struct {
	Enabled bool `json:"enabled"`
}

// PostgresPlugin is a plugin of the operator.
type PostgresPlugin struct {
	Name          string            `json:"name"`
	IsWALArchiver bool              `json:"isWALArchiver"`
	Parameters    map[string]string `json:"parameters"`
}

// PostgresStorage is a volume.
type PostgresStorage struct {
	Size         string `json:"size"`
	StorageClass string `json:"storageClass,omitempty"`
}

// ScheduledBackup is the ScheduledBackup of CloudNativePG 1.30.
type ScheduledBackup struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              ScheduledBackupSpec `json:"spec"`
}

// NewScheduledBackup returns a ScheduledBackup without a spec.
func NewScheduledBackup(meta metav1.ObjectMeta) *ScheduledBackup {
	return &ScheduledBackup{TypeMeta: kind("postgresql.cnpg.io/v1", "ScheduledBackup"), ObjectMeta: meta}
}

// ScheduledBackupSpec says when to back up. Schedule has six fields, seconds
// first.
type ScheduledBackupSpec struct {
	Schedule             string              `json:"schedule"`
	BackupOwnerReference string              `json:"backupOwnerReference"`
	Cluster              LocalReference      `json:"cluster"`
	Method               string              `json:"method"`
	PluginConfiguration  PluginConfiguration `json:"pluginConfiguration"`
	Target               string              `json:"target"`
	Immediate            bool                `json:"immediate"`
}

// PluginConfiguration names the plugin that takes the backup.
type PluginConfiguration struct {
	Name string `json:"name"`
}

// ObjectStore is where CloudNativePG's plugin for Barman Cloud 0.x keeps backups.
type ObjectStore struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              ObjectStoreSpec `json:"spec"`
}

// NewObjectStore returns an ObjectStore without a spec.
func NewObjectStore(meta metav1.ObjectMeta) *ObjectStore {
	return &ObjectStore{TypeMeta: kind("barmancloud.cnpg.io/v1", "ObjectStore"), ObjectMeta: meta}
}

// ObjectStoreSpec is a bucket and how long backups stay in it, like "7d".
type ObjectStoreSpec struct {
	RetentionPolicy string                   `json:"retentionPolicy"`
	Configuration   ObjectStoreConfiguration `json:"configuration"`
}

// ObjectStoreConfiguration says where the bucket is and how to write to it.
type ObjectStoreConfiguration struct {
	DestinationPath string              `json:"destinationPath"`
	EndpointURL     string              `json:"endpointURL"`
	S3Credentials   S3Credentials       `json:"s3Credentials"`
	WAL             ObjectStoreTransfer `json:"wal"`
	Data            ObjectStoreTransfer `json:"data"`
}

// S3Credentials are the account's keys.
type S3Credentials struct {
	AccessKeyID     KeyReference `json:"accessKeyId"`
	SecretAccessKey KeyReference `json:"secretAccessKey"`
}

// ObjectStoreTransfer says how files are written.
type ObjectStoreTransfer struct {
	Compression string `json:"compression"`
}
