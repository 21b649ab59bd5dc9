package kubernetes

import (
	"encoding/base64"
	"fmt"
	"io"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fournines/kubernetes/operator"
	"fournines/spec"
)

// The Secrets of an installation and their keys.
const (
	secretDify = "dify" // Dify's own keys

	keySecretKey   = "secret-key"   // signs sessions and URLs of files
	keySandbox     = "sandbox-key"  // api and workers to the sandbox
	keyPluginKey   = "plugin-key"   // api and workers to the plugin daemon
	keyPluginInner = "plugin-inner" // the plugin daemon to the api

	// Accounts of the database, with the keys that CloudNativePG wants.
	secretPostgresDify  = "postgres-dify"
	secretPostgresProbe = "postgres-pgproxy"

	secretRedisCluster = "redis-cluster" // of the nodes
	secretRedisDify    = "redis-dify"    // of redisproxy's clients

	secretProxies = "proxies"

	keyGatewayAdmin = "gateway-admin-token"
	keyPGProxyAdmin = "pgproxy-admin-token"
	keyJobs         = "gateway-jobs-key"
	keyWebhook      = "gateway-webhook-secret"

	secretMilvus = "milvus"

	// The object storage's account; the keys are those that Milvus's operator
	// wants.
	secretStorage    = "object-storage"
	keyStorageAccess = "accesskey"
	keyStorageSecret = "secretkey"

	keyUsername = corev1.BasicAuthUsernameKey
	keyPassword = corev1.BasicAuthPasswordKey
)

// accounts of the services.
const (
	accountDify  = "dify"
	accountProbe = "pgproxy"
	accountRoot  = "root" // of Milvus
)

// secretBytes is the entropy of a generated secret; base64url writes it as 32
// characters that a URL takes as they are.
const secretBytes = 24

// secretSpec describes a Secret that an installation needs.
type secretSpec struct {
	name string
	kind corev1.SecretType
	// username is the value of the key username, where there is one.
	username string
	// keys that hold secrets.
	keys []string
	// given is set for those that only the user can know.
	given bool
}

// secrets lists what an installation needs.
func (b *builder) secrets() []secretSpec {
	list := []secretSpec{
		{name: secretDify, kind: corev1.SecretTypeOpaque, keys: []string{keySecretKey, keySandbox}},
		{name: secretPostgresDify, kind: corev1.SecretTypeBasicAuth, username: accountDify, keys: []string{keyPassword}},
		{name: secretPostgresProbe, kind: corev1.SecretTypeBasicAuth, username: accountProbe, keys: []string{keyPassword}},
		{name: secretRedisCluster, kind: corev1.SecretTypeOpaque, keys: []string{keyPassword}},
		{name: secretRedisDify, kind: corev1.SecretTypeBasicAuth, username: accountDify, keys: []string{keyPassword}},
		{name: secretProxies, kind: corev1.SecretTypeOpaque, keys: []string{keyGatewayAdmin, keyPGProxyAdmin, keyJobs, keyWebhook}},
		{name: secretMilvus, kind: corev1.SecretTypeBasicAuth, username: accountRoot, keys: []string{keyPassword}},
		{name: secretStorage, kind: corev1.SecretTypeOpaque, keys: []string{keyStorageAccess, keyStorageSecret}, given: true},
	}
	if b.version.plugins() {
		list[0].keys = append(list[0].keys, keyPluginKey, keyPluginInner)
	}
	for i := range list {
		switch list[i].name {
		case secretPostgresDify, secretPostgresProbe:
			list[i].given = b.k.Postgres.Provider == spec.ProviderExternal
		case secretRedisCluster:
			list[i].given = b.k.Redis.Provider == spec.ProviderExternal
		case secretMilvus:
			list[i].given = b.k.Vectors.Provider == spec.ProviderExternal
		}
	}
	return list
}

// secretsLayer has External Secrets fetch the Secrets from a store, where there
// is one. Values are never rendered.
func (b *builder) secretsLayer() ([]File, error) {
	if b.k.Secrets.Store == "" {
		return nil, nil
	}
	var objects []Object
	for _, s := range b.secrets() {
		key := s.name
		if b.k.Secrets.Prefix != "" {
			key = b.k.Secrets.Prefix + "/" + s.name
		}
		e := operator.NewExternalSecret(b.meta(s.name, "secrets"))
		e.Spec = operator.ExternalSecretSpec{
			RefreshInterval: "1h0m0s",
			SecretStoreRef:  operator.SecretStoreReference{Name: b.k.Secrets.Store, Kind: "ClusterSecretStore"},
			Target:          operator.ExternalSecretTarget{Name: s.name, Template: operator.ExternalSecretTemplate{Type: s.kind}},
			DataFrom:        []operator.ExternalSecretValue{{Extract: operator.ExternalSecretExtract{Key: key}}},
		}
		objects = append(objects, e)
	}
	return []File{{"external-secrets.yaml", objects}}, nil
}

// Given is a Secret that only the user can make.
type Given struct {
	// Name of the Secret.
	Name string
	// Keys that it must have.
	Keys []string
}

// GenerateSecrets returns the Secrets of an installation with new values, as a
// stream of YAML documents for `kubectl create -f -`, and those that nobody can
// generate. random gives the values; the documents hold them in clear.
func GenerateSecrets(s *spec.Spec, random io.Reader) (stream []byte, given []Given, err error) {
	if err := s.ForKubernetes(); err != nil {
		return nil, nil, err
	}
	version, err := versionOf(s.Dify.Version)
	if err != nil {
		return nil, nil, err
	}
	b := &builder{spec: s, k: &s.Kubernetes, version: version}
	var objects []Object
	for _, want := range b.secrets() {
		if want.given {
			g := Given{Name: want.name, Keys: want.keys}
			if want.username != "" {
				g.Keys = append([]string{keyUsername}, g.Keys...)
			}
			given = append(given, g)
			continue
		}
		secret := &corev1.Secret{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: b.meta(want.name, "secrets"),
			Type: want.kind, StringData: map[string]string{},
		}
		if want.username != "" {
			secret.StringData[keyUsername] = want.username
		}
		for _, key := range want.keys {
			if secret.StringData[key], err = newSecret(key, random); err != nil {
				return nil, nil, err
			}
		}
		objects = append(objects, secret)
	}
	stream, err = encode(objects)
	return stream, given, err
}

// newSecret is a random secret in the form that its reader wants.
func newSecret(key string, random io.Reader) (string, error) {
	value := make([]byte, secretBytes)
	if _, err := io.ReadFull(random, value); err != nil {
		return "", fmt.Errorf("generate a secret: %w", err)
	}
	if key == keyWebhook {
		return "whsec_" + base64.StdEncoding.EncodeToString(value), nil
	}
	return base64.RawURLEncoding.EncodeToString(value), nil
}
