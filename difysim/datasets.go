package difysim

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"fournines/difysim/embed"
)

// The queue of the knowledge tasks and their names in Dify.
const (
	datasetQueue       = "dataset"
	indexTask          = "tasks.document_indexing_task.document_indexing_task"
	updateTask         = "tasks.document_indexing_update_task.document_indexing_update_task"
	cleanDocumentTask  = "tasks.clean_document_task.clean_document_task"
	cleanDatasetTask   = "tasks.clean_dataset_task.clean_dataset_task"
	deleteSegmentTask  = "tasks.delete_segment_from_index_task.delete_segment_from_index_task"
	nameLimit          = 40
	descriptionLimit   = 400
	techniqueQuality   = "high_quality"
	techniqueEconomy   = "economy"
	datasetColumns     = `SELECT datasets.id AS datasets_id, datasets.name AS datasets_name, coalesce(datasets.description, '') AS datasets_description, datasets.permission AS datasets_permission, datasets.data_source_type AS datasets_data_source_type, datasets.indexing_technique AS datasets_indexing_technique, datasets.created_at AS datasets_created_at, (SELECT count(*) FROM app_dataset_joins WHERE app_dataset_joins.dataset_id = datasets.id) AS app_count, (SELECT count(*) FROM documents WHERE documents.dataset_id = datasets.id) AS document_count, (SELECT coalesce(sum(documents.word_count), 0) FROM documents WHERE documents.dataset_id = datasets.id) AS word_count`
	fromOneDataset     = "\nFROM datasets\nWHERE datasets.id = $1::uuid AND datasets.tenant_id = $2::uuid\n LIMIT 1"
	fromTenantDatasets = "\nFROM datasets\nWHERE datasets.tenant_id = $1::uuid ORDER BY datasets.created_at DESC, datasets.id DESC"
)

type datasetRow struct {
	id, name, description, permission string
	source, technique                 *string
	created                           time.Time
	apps, documents, words            int
}

func (d *datasetRow) fields() []any {
	return []any{&d.id, &d.name, &d.description, &d.permission, &d.source, &d.technique, &d.created, &d.apps, &d.documents, &d.words}
}

func (d *datasetRow) object(tenant string) object {
	return object{
		"id", d.id, "name", d.name, "description", d.description, "provider", "vendor", "permission", d.permission,
		"data_source_type", d.source, "indexing_technique", d.technique, "app_count", d.apps, "document_count", d.documents,
		"word_count", d.words, "created_by", tenant, "created_at", d.created.Unix(), "updated_by", tenant, "updated_at", d.created.Unix(),
		"embedding_model", embed.Name, "embedding_model_provider", embeddingProvider, "embedding_available", true,
	}
}

// dataset reads the dataset of the path.
func (q *request) dataset(ctx context.Context) (datasetRow, error) {
	var d datasetRow
	found, err := q.db.First(ctx, datasetColumns+fromOneDataset, []any{q.r.PathValue("dataset"), q.tenantID}, d.fields()...)
	if err == nil && !found {
		err = errNoDataset()
	}
	return d, err
}

func (a *API) listDatasets(ctx context.Context, q *request) error {
	limit, err := q.number("limit", 20, 1, maxPage)
	if err != nil {
		return err
	}
	pageNo, err := q.number("page", 1, 1, 1e6)
	if err != nil {
		return err
	}
	var total int
	if _, err := q.db.First(ctx, "SELECT count(*) AS count_1 FROM datasets WHERE datasets.tenant_id = $1::uuid", []any{q.tenantID}, &total); err != nil {
		return err
	}
	data := []any{}
	err = q.db.Rows(ctx, datasetColumns+fromTenantDatasets+limitClause(limit)+fmt.Sprintf(" OFFSET %d", (pageNo-1)*limit), []any{q.tenantID}, func(scan func(...any) error) error {
		var d datasetRow
		if err := scan(d.fields()...); err != nil {
			return err
		}
		data = append(data, d.object(q.tenantID))
		return nil
	})
	if err != nil {
		return err
	}
	return q.ok(object{"data", data, "has_more", total > pageNo*limit, "limit", limit, "total", total, "page", pageNo})
}

func checkName(name string) error {
	if n := len([]rune(name)); n < 1 || n > nameLimit {
		return &apiError{Code: "invalid_param", Message: "Name must be between 1 to 40 characters.", Status: http.StatusBadRequest, Params: "name"}
	}
	return nil
}

func errNameTaken() *apiError {
	return &apiError{Code: "dataset_name_duplicate", Message: "The dataset name already exists. Please modify your dataset name.", Status: http.StatusConflict}
}

func (q *request) nameTaken(ctx context.Context, name, except string) error {
	var id string
	found, err := q.db.First(ctx, "SELECT datasets.id AS datasets_id FROM datasets WHERE datasets.name = $1 AND datasets.tenant_id = $2::uuid AND datasets.id::text <> $3 LIMIT 1", []any{name, q.tenantID, except}, &id)
	if err == nil && found {
		err = errNameTaken()
	}
	return err
}

func checkTechnique(v string) error {
	switch v {
	case "", techniqueQuality, techniqueEconomy:
		return nil
	}
	return &apiError{Code: "invalid_param", Message: "Invalid indexing technique.", Status: http.StatusBadRequest, Params: "indexing_technique"}
}

func (a *API) createDataset(ctx context.Context, q *request) error {
	if err := q.readBody(); err != nil {
		return err
	}
	name, err := q.cleanText("name", true)
	if err != nil {
		return err
	}
	if err := checkName(name); err != nil {
		return err
	}
	description, err := q.cleanText("description", false)
	if err != nil {
		return err
	}
	if len([]rune(description)) > descriptionLimit {
		return invalidParam("Description cannot exceed %d characters.", descriptionLimit)
	}
	technique, err := q.cleanText("indexing_technique", false)
	if err != nil {
		return err
	}
	if err := checkTechnique(technique); err != nil {
		return err
	}
	if err := q.nameTaken(ctx, name, ""); err != nil {
		return err
	}
	var d datasetRow
	var id string
	if _, err := q.db.First(ctx, `INSERT INTO datasets (tenant_id, name, description, permission, indexing_technique, embedding_model, embedding_model_provider) VALUES ($1::uuid, $2, $3, 'only_me', $4, $5, $6) RETURNING datasets.id`,
		[]any{q.tenantID, name, description, nullable(technique), embed.Name, embeddingProvider}, &id); err != nil {
		return err
	}
	if err := q.db.Commit(ctx); err != nil {
		return err
	}
	if _, err := q.db.First(ctx, datasetColumns+fromOneDataset, []any{id, q.tenantID}, d.fields()...); err != nil {
		return err
	}
	return q.ok(d.object(q.tenantID))
}

func (a *API) getDataset(ctx context.Context, q *request) error {
	d, err := q.dataset(ctx)
	if err != nil {
		return err
	}
	return q.ok(d.object(q.tenantID))
}

func (a *API) patchDataset(ctx context.Context, q *request) error {
	if err := q.readBody(); err != nil {
		return err
	}
	d, err := q.dataset(ctx)
	if err != nil {
		return err
	}
	if q.has("name") {
		if d.name, err = q.cleanText("name", true); err != nil {
			return err
		}
		if err := checkName(d.name); err != nil {
			return err
		}
		if err := q.nameTaken(ctx, d.name, d.id); err != nil {
			return err
		}
	}
	if q.has("description") {
		if d.description, err = q.cleanText("description", true); err != nil {
			return err
		}
	}
	if _, err := q.db.Exec(ctx, "UPDATE datasets SET name=$1, description=$2, updated_at=CURRENT_TIMESTAMP WHERE datasets.id = $3::uuid", d.name, d.description, d.id); err != nil {
		return err
	}
	if err := q.db.Commit(ctx); err != nil {
		return err
	}
	return q.ok(d.object(q.tenantID))
}

func (a *API) deleteDataset(ctx context.Context, q *request) error {
	d, err := q.dataset(ctx)
	if err != nil {
		return err
	}
	if d.apps > 0 {
		return &apiError{Code: "dataset_in_use", Message: "The dataset is being used by some apps. Please remove the dataset from the apps before deleting it.", Status: http.StatusConflict}
	}
	if _, err := q.db.Exec(ctx, "DELETE FROM datasets WHERE datasets.id = $1::uuid", d.id); err != nil {
		return err
	}
	if err := q.db.Commit(ctx); err != nil {
		return err
	}
	if _, err := a.producer.Delay(ctx, datasetQueue, cleanDatasetTask, d.id, q.tenantID); err != nil {
		return err
	}
	q.w.WriteHeader(http.StatusNoContent)
	return nil
}

// splitText cuts a text into segments at blank lines, and longer ones at words,
// each of at most limit characters.
func splitText(text string, limit int) []string {
	var out []string
	for _, para := range strings.Split(strings.ReplaceAll(text, "\r\n", "\n"), "\n\n") {
		var b []rune
		flush := func() {
			if s := strings.TrimSpace(string(b)); s != "" {
				out = append(out, s)
			}
			b = b[:0]
		}
		for _, word := range strings.Fields(para) {
			w := []rune(word)
			for len(w) > limit { // a word longer than a segment, or text without spaces
				flush()
				b = append(b, w[:limit]...)
				w = w[limit:]
				flush()
			}
			if len(b)+1+len(w) > limit {
				flush()
			}
			if len(b) > 0 {
				b = append(b, ' ')
			}
			b = append(b, w...)
		}
		flush()
	}
	return out
}
