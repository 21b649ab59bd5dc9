package difysim

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path"
	"strings"
	"time"
)

const (
	documentColumns = `SELECT documents.id AS documents_id, documents.position AS documents_position, documents.data_source_type AS documents_data_source_type, coalesce(documents.data_source_info, '{}') AS documents_data_source_info, documents.name AS documents_name, documents.batch AS documents_batch, documents.created_from AS documents_created_from, documents.created_at AS documents_created_at, documents.tokens AS documents_tokens, documents.word_count AS documents_word_count, documents.indexing_status AS documents_indexing_status, documents.error AS documents_error, documents.enabled AS documents_enabled, documents.archived AS documents_archived, documents.doc_form AS documents_doc_form, (SELECT coalesce(sum(document_segments.hit_count), 0) FROM document_segments WHERE document_segments.document_id = documents.id) AS hit_count`
	fromOneDocument = "\nFROM documents\nWHERE documents.dataset_id = $1::uuid AND documents.id = $2::uuid\n LIMIT 1"
)

type documentRow struct {
	id, sourceType, sourceInfo, name, batch, createdFrom, status, form string
	position, hits                                                     int
	created                                                            time.Time
	tokens, words                                                      *int
	failure                                                            *string
	enabled, archived                                                  bool
}

func (d *documentRow) fields() []any {
	return []any{&d.id, &d.position, &d.sourceType, &d.sourceInfo, &d.name, &d.batch, &d.createdFrom, &d.created, &d.tokens, &d.words,
		&d.status, &d.failure, &d.enabled, &d.archived, &d.form, &d.hits}
}

// displayStatus is Dify's word for what a user sees.
func (d *documentRow) displayStatus() string {
	switch {
	case d.status == "waiting":
		return "queuing"
	case d.status == "error":
		return "error"
	case d.status == "completed" && d.archived:
		return "archived"
	case d.status == "completed" && !d.enabled:
		return "disabled"
	case d.status == "completed":
		return "available"
	default:
		return "indexing"
	}
}

func (d *documentRow) object(tenant string) object {
	return object{
		"id", d.id, "position", d.position, "data_source_type", d.sourceType, "data_source_info", json.RawMessage(d.sourceInfo),
		"dataset_process_rule_id", nil, "name", d.name, "created_from", d.createdFrom, "created_by", tenant, "created_at", d.created.Unix(),
		"tokens", d.tokens, "indexing_status", d.status, "error", d.failure, "enabled", d.enabled, "disabled_at", nil, "disabled_by", nil,
		"archived", d.archived, "display_status", d.displayStatus(), "word_count", d.words, "hit_count", d.hits, "doc_form", d.form,
	}
}

// document reads the document of the path.
func (q *request) document(ctx context.Context, dataset string) (documentRow, error) {
	var d documentRow
	found, err := q.db.First(ctx, documentColumns+fromOneDocument, []any{dataset, q.r.PathValue("document")}, d.fields()...)
	if err == nil && !found {
		err = notFound("Document not found.")
	}
	return d, err
}

// createDocument stores the text as a file, commits the document and only then
// gives the worker its task.
func (a *API) createDocument(ctx context.Context, q *request) error {
	if err := q.readBody(); err != nil {
		return err
	}
	name, err := q.cleanText("name", true)
	if err != nil {
		return err
	}
	text, err := q.cleanText("text", true)
	if err != nil {
		return err
	}
	if name == "" || len(name) > 255 {
		return invalidParam("name must be 1 to 255 characters")
	}
	if text == "" {
		return invalidParam("text must not be empty")
	}
	technique, err := q.cleanText("indexing_technique", false)
	if err != nil {
		return err
	}
	if err := checkTechnique(technique); err != nil {
		return err
	}
	ds, err := q.dataset(ctx)
	if err != nil {
		return err
	}
	if ds.technique == nil && technique == "" {
		return invalidParam("indexing_technique is required.")
	}
	if err := a.core.use(ctx, a.cfg.CPU.Cost); err != nil {
		return err
	}
	file, err := a.storeText(ctx, q, name, text)
	if err != nil {
		return err
	}
	info, err := jsonText(object{"upload_file_id", file})
	if err != nil {
		return err
	}
	if ds.technique == nil || ds.source == nil {
		if technique == "" {
			technique = deref(ds.technique)
		}
		if _, err := q.db.Exec(ctx, "UPDATE datasets SET data_source_type='upload_file', indexing_technique=$1, updated_at=CURRENT_TIMESTAMP WHERE datasets.id = $2::uuid", technique, ds.id); err != nil {
			return err
		}
	}
	var position int
	if _, err := q.db.First(ctx, `SELECT coalesce(max(documents.position), 0) + 1 AS anon_1
FROM documents
WHERE documents.dataset_id = $1::uuid`, []any{ds.id}, &position); err != nil {
		return err
	}
	batch := time.Now().UTC().Format("20060102150405") + fmt.Sprint(100000+rand.IntN(900000))
	var id string
	if _, err := q.db.First(ctx, `INSERT INTO documents (tenant_id, dataset_id, position, data_source_type, data_source_info, batch, name, created_from, created_by) VALUES ($1::uuid, $2::uuid, $3, 'upload_file', $4, $5, $6, 'api', $7::uuid) RETURNING documents.id`,
		[]any{q.tenantID, ds.id, position, info, batch, name, q.tenantID}, &id); err != nil {
		return err
	}
	if err := q.db.Commit(ctx); err != nil {
		return err
	}
	if _, err := a.producer.Delay(ctx, datasetQueue, indexTask, ds.id, []string{id}); err != nil {
		return err
	}
	return q.documentAnswer(ctx, ds.id, id)
}

func (q *request) documentAnswer(ctx context.Context, dataset, id string) error {
	var d documentRow
	found, err := q.db.First(ctx, documentColumns+fromOneDocument, []any{dataset, id}, d.fields()...)
	if err != nil {
		return err
	}
	if !found {
		return notFound("Document not found.")
	}
	return q.ok(object{"document", d.object(q.tenantID), "batch", d.batch})
}

// storeText keeps a text as an upload, as Dify does with documents by text.
func (a *API) storeText(ctx context.Context, q *request, name, text string) (id string, err error) {
	key, size, sum, err := a.store(q.tenantID, ".txt", strings.NewReader(text))
	if err != nil {
		return "", err
	}
	return q.insertUpload(ctx, uploadRow{key: key, name: name, size: size, extension: "txt", mime: "text/plain", sum: sum, role: "account", by: q.tenantID})
}

func (a *API) updateDocument(ctx context.Context, q *request) error {
	if err := q.readBody(); err != nil {
		return err
	}
	ds, err := q.dataset(ctx)
	if err != nil {
		return err
	}
	d, err := q.document(ctx, ds.id)
	if err != nil {
		return err
	}
	if d.displayStatus() != "available" {
		return invalidParam("Document is not available")
	}
	if q.has("name") {
		if d.name, err = q.cleanText("name", true); err != nil {
			return err
		}
		if d.name == "" || len(d.name) > 255 {
			return invalidParam("name must be 1 to 255 characters")
		}
	}
	text, err := q.cleanText("text", false)
	if err != nil {
		return err
	}
	info := d.sourceInfo
	if text != "" {
		file, err := a.storeText(ctx, q, d.name, text)
		if err != nil {
			return err
		}
		if info, err = jsonText(object{"upload_file_id", file}); err != nil {
			return err
		}
	}
	batch := time.Now().UTC().Format("20060102150405") + fmt.Sprint(100000+rand.IntN(900000))
	if _, err := q.db.Exec(ctx, `UPDATE documents SET name=$1, data_source_info=$2, batch=$3, indexing_status='waiting', completed_at=NULL, processing_started_at=NULL, parsing_completed_at=NULL, cleaning_completed_at=NULL, splitting_completed_at=NULL, updated_at=CURRENT_TIMESTAMP WHERE documents.id = $4::uuid`,
		d.name, info, batch, d.id); err != nil {
		return err
	}
	if err := q.db.Commit(ctx); err != nil {
		return err
	}
	if _, err := a.producer.Delay(ctx, datasetQueue, updateTask, ds.id, d.id); err != nil {
		return err
	}
	return q.documentAnswer(ctx, ds.id, d.id)
}

func (a *API) listDocuments(ctx context.Context, q *request) error {
	limit, err := q.number("limit", 20, 1, maxPage)
	if err != nil {
		return err
	}
	pageNo, err := q.number("page", 1, 1, 1e6)
	if err != nil {
		return err
	}
	ds, err := q.dataset(ctx)
	if err != nil {
		return err
	}
	where, args := "\nFROM documents\nWHERE documents.dataset_id = $1::uuid", []any{ds.id}
	if keyword := strings.ReplaceAll(q.r.URL.Query().Get("keyword"), "\x00", ""); keyword != "" {
		where += " AND strpos(lower(documents.name), lower($2)) > 0"
		args = append(args, keyword)
	}
	var total int
	if _, err := q.db.First(ctx, "SELECT count(*) AS count_1"+where, args, &total); err != nil {
		return err
	}
	data := []any{}
	err = q.db.Rows(ctx, documentColumns+where+" ORDER BY documents.created_at DESC, documents.id DESC"+limitClause(limit)+fmt.Sprintf(" OFFSET %d", (pageNo-1)*limit), args, func(scan func(...any) error) error {
		var d documentRow
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

// indexingStatus lists the documents of a batch; the path's document is the batch.
func (a *API) indexingStatus(ctx context.Context, q *request) error {
	ds, err := q.dataset(ctx)
	if err != nil {
		return err
	}
	data := []any{}
	err = q.db.Rows(ctx, `SELECT documents.id AS documents_id, documents.indexing_status AS documents_indexing_status, documents.processing_started_at, documents.parsing_completed_at, documents.cleaning_completed_at, documents.splitting_completed_at, documents.completed_at, documents.paused_at, documents.error, documents.stopped_at, (SELECT count(*) FROM document_segments WHERE document_segments.document_id = documents.id AND document_segments.status = 'completed') AS completed_segments, (SELECT count(*) FROM document_segments WHERE document_segments.document_id = documents.id) AS total_segments
FROM documents
WHERE documents.dataset_id = $1::uuid AND documents.batch = $2`, []any{ds.id, strings.ReplaceAll(q.r.PathValue("document"), "\x00", "")}, func(scan func(...any) error) error {
		var id, status string
		var failure *string
		var times [7]*time.Time
		var completed, total int
		if err := scan(&id, &status, &times[0], &times[1], &times[2], &times[3], &times[4], &times[5], &failure, &times[6], &completed, &total); err != nil {
			return err
		}
		data = append(data, object{
			"id", id, "indexing_status", status, "processing_started_at", unix(times[0]), "parsing_completed_at", unix(times[1]),
			"cleaning_completed_at", unix(times[2]), "splitting_completed_at", unix(times[3]), "completed_at", unix(times[4]),
			"paused_at", unix(times[5]), "error", failure, "stopped_at", unix(times[6]),
			"completed_segments", completed, "total_segments", total,
		})
		return nil
	})
	if err != nil {
		return err
	}
	if len(data) == 0 {
		return notFound("Documents not found.")
	}
	return q.ok(object{"data", data})
}

func (a *API) deleteDocument(ctx context.Context, q *request) error {
	ds, err := q.dataset(ctx)
	if err != nil {
		return err
	}
	d, err := q.document(ctx, ds.id)
	if err != nil {
		return err
	}
	switch d.status {
	case "completed", "error", "waiting", "paused":
	default:
		return &apiError{Code: "document_indexing", Message: "Cannot delete document during indexing.", Status: http.StatusBadRequest}
	}
	if _, err := q.db.Exec(ctx, "DELETE FROM documents WHERE documents.id = $1::uuid", d.id); err != nil {
		return err
	}
	if err := q.db.Commit(ctx); err != nil {
		return err
	}
	if _, err := a.producer.Delay(ctx, datasetQueue, cleanDocumentTask, d.id, ds.id, d.form); err != nil {
		return err
	}
	return q.success()
}

func hashText(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// storageKey is the place of an upload in the shared folder.
func storageKey(tenant, name string) string { return path.Join("upload_files", tenant, name) }
