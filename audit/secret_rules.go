package audit

import (
	"encoding/base64"
	"regexp"
	"strings"
)

// knownDefaults are passwords and keys that stand in public files: Dify's
// compose files and charts, and the defaults of the servers.
var knownDefaults = []string{
	"difyai123456", "sk-9f73s3ljTXVcMT3Blb3ljTqtsKiGHXVcMT3BlbkFJLK7U", "WVF5YThaHlkYwhGUSmCRgsX3tD5ngdN8pkih", "dify-sandbox",
	"lYkiYYT6owG+71oLerGzA7GXCgOT++6ovaezWAjpCjf+Sjc3ZtU+qUEi", "QaHbTe77CtuXmsfyhR7+vRjI/+XbV1AaFy691iy+kGDv2Jvtyk7ojQ==",
	"minioadmin", "Milvus", "postgres", "password", "redis", "admin", "changeme", "123456", "your-secret-key", "bitnami", "Dify123456",
}

// secretName tells names that hold a password or key.
var secretName = regexp.MustCompile(`(?i)(PASSWORD|PASSWD|SECRET_KEY|API_KEY|ACCESS_KEY|_TOKEN|ALLOWED_KEYS|SERVER_KEY|INNER_API_KEY|AUTH_TOKEN)S?$`)

var urlPassword = regexp.MustCompile(`^[a-z+]+://[^:/@\s]*:([^@\s]+)@`)

// secretOf returns the secret in a value with a name, "" when it is none.
func secretOf(name, value string) string {
	if m := urlPassword.FindStringSubmatch(value); m != nil {
		return m[1]
	}
	if secretName.MatchString(name) && !strings.HasSuffix(name, "_FILE") {
		return value
	}
	return ""
}

// isDefault reports whether a secret is a well-known one. Short words count only
// when they are the whole value.
func isDefault(secret string) bool { return contains(knownDefaults, secret) }

// placeholder reports whether a value shows only what is to be filled in; the
// service that it belongs to is not in use.
func placeholder(v string) bool {
	l := strings.ToLower(v)
	return v == "" || strings.HasPrefix(l, "your") || strings.HasPrefix(l, "xxx") || strings.HasPrefix(v, "<") || strings.HasPrefix(l, "you-")
}

// optional are settings of backends that Dify's files list beside the one in
// use.
var optional = regexp.MustCompile(`^(S3|AZURE_BLOB|ALIYUN_OSS|TENCENT|OCI|HUAWEI|VOLCENGINE|BAIDU|SUPABASE|GOOGLE|QDRANT|MILVUS|RELYT|PGVECTOR|PGVECTO_RS|TIDB|ORACLE|CHROMA|OPENSEARCH|ELASTICSEARCH|ANALYTICDB|COUCHBASE|VIKINGDB|LINDORM|OCEANBASE|OPENGAUSS|UPSTASH|TABLESTORE|CLICKZETTA|BAIDU_VECTOR|MYSCALE|WEAVIATE|NOTION|RESEND|SMTP|SENTRY)_`)

// unused reports whether a variable belongs to a backend that is not in use.
func (u *unit) unused(name string) bool {
	m := optional.FindString(name)
	if m == "" || u.role != roleAPI && u.role != roleWorker {
		return false
	}
	backend := strings.ToLower(strings.TrimSuffix(m, "_"))
	used := strings.ToLower(u.env["VECTOR_STORE"].value + " " + u.env["STORAGE_TYPE"].value + " " + u.env["OPENDAL_SCHEME"].value)
	return !strings.Contains(strings.ReplaceAll(used, "-", "_"), backend)
}

// secret is one secret that stands in an input.
type secret struct {
	at      Place
	where   string
	value   string
	literal bool
}

// secrets collects the secrets that stand in the inputs.
func (in *Inventory) secrets() []secret {
	var out []secret
	for _, u := range in.units {
		for name, v := range u.env {
			if s := secretOf(name, v.value); s != "" && !u.unused(name) && !placeholder(s) {
				out = append(out, secret{v.node.at(), u.title() + ": " + name, s, v.literal})
			}
		}
		if s, ok := u.settingsOf().values["requirepass"]; ok && u.role == roleRedis {
			literal := u.compose == nil || !u.compose.fromVariable(u.argsNode)
			out = append(out, secret{s.place, u.title() + ": requirepass", s.value, literal})
		}
	}
	for _, o := range in.ofKind("Secret") {
		for _, p := range o.get("stringData").pairs() {
			out = append(out, secret{p.at(), o.title() + ": " + p.name(), p.text(), false})
		}
		for _, p := range o.get("data").pairs() {
			if plain, err := base64.StdEncoding.DecodeString(p.text()); err == nil {
				out = append(out, secret{p.at(), o.title() + ": " + p.name(), strings.TrimSpace(string(plain)), false})
			}
		}
	}
	for _, o := range in.ofKind("ConfigMap") {
		for _, p := range o.get("data").pairs() {
			if s := secretOf(p.name(), p.text()); s != "" && !placeholder(s) && !in.usedAsEnv(o) {
				out = append(out, secret{p.at(), o.title() + ": " + p.name(), s, true})
			}
		}
	}
	for _, c := range in.redisConfs {
		for _, name := range []string{"requirepass", "masterauth"} {
			if s, ok := c.values[name]; ok {
				out = append(out, secret{s.place, name, s.value, true})
			}
		}
	}
	for _, f := range in.scripts {
		for i, line := range f.lines {
			if m := scriptPassword.FindStringSubmatch(line); m != nil && !strings.HasPrefix(m[2], "$") && !strings.HasPrefix(strings.TrimSpace(line), "#") {
				out = append(out, secret{f.at(i + 1), m[1], m[2], true})
			}
		}
	}
	return out
}

// usedAsEnv reports whether a ConfigMap's data was read as the environment of a
// container already.
func (in *Inventory) usedAsEnv(m *object) bool {
	for _, u := range in.units {
		for _, from := range u.node.get("envFrom").items() {
			if from.get("configMapRef", "name").text() == m.name && u.object != nil && u.object.namespace == m.namespace {
				return true
			}
		}
	}
	return false
}

var scriptPassword = regexp.MustCompile(`\b(PGPASSWORD|REDISCLI_AUTH|MYSQL_PWD|AWS_SECRET_ACCESS_KEY|[A-Z_]*PASSWORD)=["']?([^\s"';]+)`)

func secretRules() []Rule {
	reads := []Kind{KindCompose, KindKubernetes, KindRedisConf, KindScript}
	byUse := func(pick func(s secret) bool, format string) func(in *Inventory) []hit {
		return func(in *Inventory) []hit {
			var out []hit
			for _, s := range in.secrets() {
				if pick(s) {
					out = append(out, found(s.at, format, s.where))
				}
			}
			return out
		}
	}
	return []Rule{
		{
			ID: "FN260", Title: "a default password", Severity: Critical, Reads: reads,
			Why:  "It stands in public files, and scanners try it. Who gets in can delete the database, or read every provider's key.",
			Cost: costs(perMistake, takesRestore, 1),
			Fix:  "Generate one for each service (`openssl rand -base64 32`) and keep it in a secret or a file of mode 0600.",
			check: byUse(func(s secret) bool { return isDefault(s.value) },
				"%s is a well-known default"),
		},
		{
			ID: "FN261", Title: "a password in plain text", Severity: High, Reads: reads,
			Why:  "Whoever may read the repository, or a copy of it, has the database; and nobody dares to change a password that stands in six files.",
			Cost: costs(perMistake, takesRestore, 0.5),
			Fix:  "Take it from a variable of a `.env` that is not in the repository, a docker secret, a Kubernetes Secret (`secretKeyRef`), or an ACL file.",
			check: byUse(func(s secret) bool {
				return s.literal && s.value != "" && !isDefault(s.value) && !strings.Contains(s.value, "$")
			},
				"%s stands in plain text"),
		},
		{
			ID: "FN262", Title: "Redis without a password", Severity: High, Reads: []Kind{KindCompose},
			Why:  "Every container of the network, the sandbox that runs users' code included, can empty the queue with one command.",
			Cost: costs(perMistake, takesUnseen, 1),
			Fix:  "Start it with `--requirepass` from a variable, or with an ACL file.",
			check: forServices(func(u *unit) []hit {
				s := u.settingsOf()
				if u.role != roleRedis || s.partial || s.get("requirepass") != "" || s.get("aclfile") != "" {
					return nil
				}
				for name := range u.env {
					if strings.Contains(name, "PASSWORD") {
						return nil
					}
				}
				return []hit{found(u.argsNode.atOr(u.node), "%s starts without requirepass", u.title())}
			}),
		},
		{
			ID: "FN263", Title: "PostgreSQL trusts everybody", Severity: Critical, Reads: []Kind{KindCompose, KindKubernetes},
			Why:  "POSTGRES_HOST_AUTH_METHOD=trust lets anybody who reaches the port be the superuser.",
			Cost: costs(perMistake, takesRestore, 1),
			Fix:  "Remove it; the image then asks for SCRAM passwords.",
			check: forUnits(func(u *unit) []hit {
				if u.env["POSTGRES_HOST_AUTH_METHOD"].value != "trust" {
					return nil
				}
				return []hit{found(u.envAt("POSTGRES_HOST_AUTH_METHOD"), "%s", u.title())}
			}),
		},
	}
}
