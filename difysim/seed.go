package difysim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/google/uuid"

	"fournines/difysim/embed"
	"fournines/difysim/sqlsession"
	"fournines/internal/strictyaml"
)

// The modes of an app.
const (
	ModeChat         = "chat"
	ModeAgentChat    = "agent-chat"
	ModeAdvancedChat = "advanced-chat"
	ModeCompletion   = "completion"
	ModeWorkflow     = "workflow"
)

// Seed is the content of the seed file: what migrate puts into an empty
// installation. Identifiers are derived from the names, so that applying it
// again changes only keys that changed.
type Seed struct {
	// Tenant is the workspace's name; default "demo".
	Tenant string `yaml:"tenant"`
	// Apps and their keys.
	Apps []SeedApp `yaml:"apps"`
	// DatasetKey (dataset-…) opens all datasets of the tenant; empty means none.
	DatasetKey string `yaml:"datasetKey"`
	// Datasets are created empty.
	Datasets []SeedDataset `yaml:"datasets"`
}

// SeedApp is one app.
type SeedApp struct {
	// Name of the app, unique in the file.
	Name string `yaml:"name"`
	// Mode is chat, agent-chat, advanced-chat, completion or workflow.
	Mode string `yaml:"mode"`
	// Key (app-…) is the API key.
	Key string `yaml:"key"`
	// Datasets are the names of datasets that the app retrieves from.
	Datasets []string `yaml:"datasets"`
}

// SeedDataset is one dataset.
type SeedDataset struct {
	// Name of the dataset, unique in the file.
	Name string `yaml:"name"`
}

// seedSpace makes identifiers from names.
var seedSpace = uuid.MustParse("6c9e2f0e-6b0e-5d51-9d1b-2f7d0c6f3a11")

func seedID(kind, name string) string {
	return uuid.NewSHA1(seedSpace, []byte(kind+"/"+name)).String()
}

// SeedAppID returns the id of a seeded app.
func SeedAppID(name string) string { return seedID("app", name) }

// SeedDatasetID returns the id of a seeded dataset.
func SeedDatasetID(name string) string { return seedID("dataset", name) }

// LoadSeed reads and checks a seed file.
func LoadSeed(path string) (*Seed, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read seed file: %w", err)
	}
	s := &Seed{}
	if err := strictyaml.Unmarshal(path, data, s); err != nil {
		return nil, err
	}
	return s, s.Validate()
}

// Validate reports every problem, each with its field; keys are not shown.
func (s *Seed) Validate() error {
	var errs []error
	datasets := map[string]bool{}
	for i, d := range s.Datasets {
		if d.Name == "" || datasets[d.Name] {
			errs = append(errs, fmt.Errorf("seed: datasets[%d].name: %q: must be set and unique", i, d.Name))
		}
		datasets[d.Name] = true
	}
	names, keys := map[string]bool{}, map[string]bool{}
	for i, a := range s.Apps {
		field := fmt.Sprintf("seed: apps[%d]", i)
		if a.Name == "" || names[a.Name] {
			errs = append(errs, fmt.Errorf("%s.name: %q: must be set and unique", field, a.Name))
		}
		names[a.Name] = true
		switch a.Mode {
		case ModeChat, ModeAgentChat, ModeAdvancedChat, ModeCompletion, ModeWorkflow:
		default:
			errs = append(errs, fmt.Errorf("%s.mode: %q: want chat, agent-chat, advanced-chat, completion or workflow", field, a.Mode))
		}
		if !strings.HasPrefix(a.Key, "app-") || len(a.Key) < 12 || keys[a.Key] {
			errs = append(errs, fmt.Errorf("%s.key: want a unique key of app- and at least 8 characters", field))
		}
		keys[a.Key] = true
		for _, d := range a.Datasets {
			if !datasets[d] {
				errs = append(errs, fmt.Errorf("%s.datasets: %q is not in datasets", field, d))
			}
		}
	}
	if s.DatasetKey != "" && (!strings.HasPrefix(s.DatasetKey, "dataset-") || len(s.DatasetKey) < 16) {
		errs = append(errs, errors.New("seed: datasetKey: want a key of dataset- and at least 8 characters"))
	}
	return errors.Join(errs...)
}

// apply writes the seed; what is there already is brought up to date.
func (s *Seed) apply(ctx context.Context, tx *sqlsession.Session) error {
	if len(s.Apps) == 0 && s.DatasetKey == "" && len(s.Datasets) == 0 {
		return nil
	}
	tenant := s.Tenant
	if tenant == "" {
		tenant = "demo"
	}
	tenantID := seedID("tenant", tenant)
	put := func(sql string, args ...any) error {
		if _, err := tx.Exec(ctx, sql, args...); err != nil {
			return fmt.Errorf("seed: %w", err)
		}
		return nil
	}
	if err := put("INSERT INTO tenants (id, name) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING", tenantID, tenant); err != nil {
		return err
	}
	for _, d := range s.Datasets {
		if err := put(`INSERT INTO datasets (id, tenant_id, name, permission, indexing_technique, embedding_model, embedding_model_provider)
VALUES ($1, $2, $3, 'only_me', 'high_quality', $4, $5) ON CONFLICT (id) DO NOTHING`,
			SeedDatasetID(d.Name), tenantID, d.Name, embed.Name, embeddingProvider); err != nil {
			return err
		}
	}
	for _, a := range s.Apps {
		appID := SeedAppID(a.Name)
		if err := put(`INSERT INTO apps (id, tenant_id, name, mode, workflow_id) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (id) DO UPDATE SET mode = excluded.mode`, appID, tenantID, a.Name, a.Mode, seedID("workflow", a.Name)); err != nil {
			return err
		}
		if err := put(`INSERT INTO api_tokens (id, app_id, tenant_id, type, token) VALUES ($1, $2, $3, 'app', $4)
ON CONFLICT (id) DO UPDATE SET token = excluded.token`, seedID("token", a.Name), appID, tenantID, a.Key); err != nil {
			return err
		}
		for _, d := range a.Datasets {
			if err := put(`INSERT INTO app_dataset_joins (id, app_id, dataset_id) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING`,
				seedID("join", a.Name+"/"+d), appID, SeedDatasetID(d)); err != nil {
				return err
			}
		}
	}
	if s.DatasetKey != "" {
		return put(`INSERT INTO api_tokens (id, tenant_id, type, token) VALUES ($1, $2, 'dataset', $3)
ON CONFLICT (id) DO UPDATE SET token = excluded.token`, seedID("token", "datasets"), tenantID, s.DatasetKey)
	}
	return nil
}
