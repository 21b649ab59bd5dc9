package audit

import "strings"

// storageRules look at what Dify keeps on disk: uploads and the private keys of
// the workspaces.
func storageRules() []Rule {
	return []Rule{
		{
			ID: "FN250", Title: "uploads and keys on a local disk", Severity: High, Reads: []Kind{KindCompose, KindKubernetes},
			Why:  "/app/api/storage holds the uploads and the private key of each workspace; without the key no stored provider credential can be read. It goes with the disk, and no second host can serve it.",
			Cost: costs(perHost, takesRestore, 0.5),
			Fix:  "Set `STORAGE_TYPE` to s3 (or opendal with a remote scheme) and move the files.",
			check: forUnits(func(u *unit) []hit {
				if u.role != roleAPI && u.role != roleWorker || !u.localStorage() || u.replicas > 1 {
					return nil
				}
				return []hit{found(u.envAt("STORAGE_TYPE"), "%s keeps its files on a local disk", u.title())}
			}),
		},
		{
			ID: "FN251", Title: "several replicas, each with a disk of its own", Severity: Critical, Reads: []Kind{KindCompose, KindKubernetes},
			Why:  "An upload is on one replica and the next request goes to another: files and provider keys are missing for a share of the requests, at random.",
			Cost: costs(perRelease, takesUnseen, 0.5),
			Fix:  "Use object storage, or one volume that all replicas mount (ReadWriteMany).",
			check: func(in *Inventory) []hit {
				var out []hit
				for _, u := range in.withRole(roleAPI, roleWorker) {
					if u.replicas < 2 || !u.localStorage() {
						continue
					}
					if how := in.sharedVolume(u); how != "" {
						out = append(out, found(u.envAt("STORAGE_TYPE"), "%s: %d replicas, %s", u.title(), u.replicas, how))
					}
				}
				return out
			},
		},
		{
			ID: "FN252", Title: "api and worker do not see the same files", Severity: Critical, Reads: []Kind{KindCompose},
			Why:  "The api takes an upload and the worker indexes it; with different folders every document fails.",
			Cost: costs(perRelease, takesUnseen, 0.5),
			Fix:  "Mount the same volume in both, or use object storage.",
			check: func(in *Inventory) []hit {
				var out []hit
				for _, w := range in.withRole(roleWorker) {
					for _, a := range in.withRole(roleAPI) {
						if w.compose == nil || a.compose != w.compose || !a.localStorage() {
							continue
						}
						if wv, av := w.storageVolume(), a.storageVolume(); av != "" && wv != av {
							out = append(out, found(w.node.get("volumes").atOr(w.node), "%s mounts %s, %s mounts %s", w.title(), orNone(wv), a.title(), av))
						}
					}
				}
				return out
			},
		},
	}
}

func orNone(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

// localStorage reports whether Dify keeps files below /app/api/storage.
func (u *unit) localStorage() bool {
	switch kind := strings.ToLower(u.env["STORAGE_TYPE"].value); kind {
	case "opendal":
		scheme := strings.ToLower(u.env["OPENDAL_SCHEME"].value)
		return scheme == "" || scheme == "fs"
	default:
		_, set := u.env["STORAGE_TYPE"]
		return kind == "local" || !set || kind == "" && u.env["STORAGE_TYPE"].literal
	}
}

const storagePath = "/app/api/storage"

// storageVolume is what a compose service mounts for Dify's files.
func (u *unit) storageVolume() string {
	for _, v := range u.node.get("volumes").items() {
		if v.isMap() {
			if v.get("target").text() == storagePath {
				return v.get("source").text()
			}
			continue
		}
		source, target, _ := strings.Cut(v.text(), ":")
		target, _, _ = strings.Cut(target, ":")
		if target == storagePath {
			return source
		}
	}
	return ""
}

// sharedVolume says why the replicas of a unit do not share their files; empty
// when they do.
func (in *Inventory) sharedVolume(u *unit) string {
	if u.compose != nil {
		// On one host the replicas share a bind mount or named volume.
		if u.storageVolume() == "" {
			return "and nothing is mounted at " + storagePath
		}
		if u.spreadOverHosts() {
			return "spread over hosts, and a volume of one host at " + storagePath
		}
		return ""
	}
	mounted := ""
	for _, m := range u.node.get("volumeMounts").items() {
		if strings.HasPrefix(storagePath, m.get("mountPath").text()) && m.get("mountPath").ok() {
			mounted = m.get("name").text()
		}
	}
	if mounted == "" {
		return "and nothing is mounted at " + storagePath
	}
	for _, t := range u.object.get("spec", "volumeClaimTemplates").items() {
		if t.get("metadata", "name").text() == mounted {
			return "each with a claim of its own (volumeClaimTemplates)"
		}
	}
	for _, v := range u.workload.get("volumes").items() {
		if v.get("name").text() != mounted {
			continue
		}
		switch {
		case v.get("emptyDir").y != nil:
			return "each with an emptyDir, which is gone when the pod is"
		case v.get("hostPath").ok():
			return "each with the hostPath of its node"
		}
		claim := in.named("PersistentVolumeClaim", v.get("persistentVolumeClaim", "claimName").text(), u.object.namespace)
		if claim != nil && !contains(claim.get("spec", "accessModes").texts(), "ReadWriteMany") {
			return "and the claim " + claim.name + " is not ReadWriteMany"
		}
	}
	return ""
}

func contains(list []string, word string) bool {
	for _, l := range list {
		if l == word {
			return true
		}
	}
	return false
}
