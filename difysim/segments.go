package difysim

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"fournines/difysim/sqlsession"
)

const (
	segmentColumns = `SELECT document_segments.id AS document_segments_id, document_segments.position AS document_segments_position, document_segments.document_id AS document_segments_document_id, document_segments.content AS document_segments_content, document_segments.answer AS document_segments_answer, document_segments.word_count AS document_segments_word_count, document_segments.tokens AS document_segments_tokens, document_segments.keywords AS document_segments_keywords, coalesce(document_segments.index_node_id, '') AS document_segments_index_node_id, coalesce(document_segments.index_node_hash, '') AS document_segments_index_node_hash, document_segments.hit_count AS document_segments_hit_count, document_segments.enabled AS document_segments_enabled, document_segments.status AS document_segments_status, document_segments.created_at AS document_segments_created_at, document_segments.indexing_at AS document_segments_indexing_at, document_segments.completed_at AS document_segments_completed_at, document_segments.error AS document_segments_error`
	fromSegments   = "\nFROM document_segments\nWHERE document_segments.document_id = $1::uuid"
	segmentLock    = "add_segment_lock_document_id_"
)

type segmentRow struct {
	id, document, content, node, hash, status string
	position, words, tokens, hits             int
	answer, keywords, failure                 *string
	enabled                                   bool
	created                                   time.Time
	indexing, completed                       *time.Time
}

func (s *segmentRow) fields() []any {
	return []any{&s.id, &s.position, &s.document, &s.content, &s.answer, &s.words, &s.tokens, &s.keywords, &s.node, &s.hash,
		&s.hits, &s.enabled, &s.status, &s.created, &s.indexing, &s.completed, &s.failure}
}

func (s *segmentRow) object(tenant string) object {
	return object{
		"id", s.id, "position", s.position, "document_id", s.document, "content", s.content, "answer", s.answer,
		"word_count", s.words, "tokens", s.tokens, "keywords", jsonColumn(s.keywords, "[]"), "index_node_id", s.node,
		"index_node_hash", s.hash, "hit_count", s.hits, "enabled", s.enabled, "disabled_at", nil, "disabled_by", nil,
		"status", s.status, "created_by", tenant, "created_at", s.created.Unix(), "indexing_at", unix(s.indexing),
		"completed_at", unix(s.completed), "error", s.failure, "stopped_at", nil,
	}
}

// indexed checks dataset and document of the path and that segments may change.
func (q *request) indexed(ctx context.Context) (datasetRow, documentRow, error) {
	ds, err := q.dataset(ctx)
	if err != nil {
		return ds, documentRow{}, err
	}
	d, err := q.document(ctx, ds.id)
	return ds, d, err
}

func (q *request) segment(ctx context.Context, document string) (segmentRow, error) {
	var s segmentRow
	found, err := q.db.First(ctx, segmentColumns+fromSegments+" AND document_segments.id = $2::uuid\n LIMIT 1", []any{document, q.r.PathValue("segment")}, s.fields()...)
	if err == nil && !found {
		err = notFound("Segment not found.")
	}
	return s, err
}

func (a *API) listSegments(ctx context.Context, q *request) error {
	_, d, err := q.indexed(ctx)
	if err != nil {
		return err
	}
	sql, args := segmentColumns+fromSegments, []any{d.id}
	query := q.r.URL.Query()
	if status := query["status"]; len(status) > 0 {
		sql += " AND document_segments.status IN (" + placeholders(len(status), len(args)+1) + ")"
		for _, s := range status {
			args = append(args, strings.ReplaceAll(s, "\x00", ""))
		}
	}
	if keyword := strings.ReplaceAll(query.Get("keyword"), "\x00", ""); keyword != "" {
		args = append(args, keyword)
		sql += " AND strpos(lower(document_segments.content), lower(" + placeholders(1, len(args)) + ")) > 0"
	}
	data := []any{}
	err = q.db.Rows(ctx, sql+" ORDER BY document_segments.position ASC, document_segments.id", args, func(scan func(...any) error) error {
		var s segmentRow
		if err := scan(s.fields()...); err != nil {
			return err
		}
		data = append(data, s.object(q.tenantID))
		return nil
	})
	if err != nil {
		return err
	}
	return q.ok(object{"data", data, "doc_form", d.form})
}

// segmentArgs is what a client says of a segment.
type segmentArgs struct {
	Content  *string  `json:"content"`
	Answer   *string  `json:"answer"`
	Keywords []string `json:"keywords"`
	Enabled  *bool    `json:"enabled"`
}

func clean(s *string) *string {
	if s == nil {
		return nil
	}
	c := strings.ReplaceAll(*s, "\x00", "")
	return &c
}

// createSegments writes segments and their vectors at once, under Dify's lock.
func (a *API) createSegments(ctx context.Context, q *request) error {
	if err := q.readBody(); err != nil {
		return err
	}
	ds, d, err := q.indexed(ctx)
	if err != nil {
		return err
	}
	if d.status != "completed" {
		return notFound("Document is not completed.")
	}
	var list []segmentArgs
	if err := q.decode("segments", false, &list); err != nil {
		return err
	}
	if len(list) == 0 {
		return invalidParam("Segments is required")
	}
	for _, s := range list {
		if s.Content == nil || strings.TrimSpace(*s.Content) == "" {
			return invalidParam("Content is empty")
		}
	}
	if err := a.core.use(ctx, a.cfg.CPU.Cost); err != nil {
		return err
	}
	l, err := acquire(ctx, a.redis, segmentLock+d.id, 600*time.Second, 10*time.Second)
	if errors.Is(err, errLocked) {
		return &apiError{Code: "document_indexing", Message: "Another segment is being added to the document.", Status: http.StatusBadRequest}
	}
	if err != nil {
		return err
	}
	defer func() {
		if err := l.release(ctx); err != nil {
			a.log.Warn("segment lock stays until it expires", "err", err.Error())
		}
	}()
	var position int
	if _, err := q.db.First(ctx, "SELECT coalesce(max(document_segments.position), 0) AS max_1"+fromSegments, []any{d.id}, &position); err != nil {
		return err
	}
	var ids []string
	var pieces []piece
	for i, s := range list {
		content := *clean(s.Content)
		p := piece{node: uuid.NewString(), content: content, hash: hashText(content), document: d.id}
		if p.segment, err = insertSegment(ctx, q.db, segmentInsert{
			tenant: q.tenantID, dataset: ds.id, document: d.id, position: position + i + 1, piece: p,
			answer: clean(s.Answer), keywords: s.Keywords, status: "completed",
		}); err != nil {
			return err
		}
		ids, pieces = append(ids, p.segment), append(pieces, p)
	}
	if err := q.db.Commit(ctx); err != nil {
		return err
	}
	if err := a.addVectors(ctx, ds.id, pieces); err != nil {
		for _, id := range ids {
			if _, e := q.db.Exec(ctx, "UPDATE document_segments SET enabled=false, status='error', error=$1 WHERE document_segments.id = $2::uuid", "vector index: not available", id); e != nil {
				return errors.Join(err, e)
			}
		}
		return errors.Join(err, q.db.Commit(ctx))
	}
	data := []any{}
	for _, id := range ids {
		var s segmentRow
		if _, err := q.db.First(ctx, segmentColumns+"\nFROM document_segments\nWHERE document_segments.id = $1::uuid", []any{id}, s.fields()...); err != nil {
			return err
		}
		data = append(data, s.object(q.tenantID))
	}
	return q.ok(object{"data", data, "doc_form", d.form})
}

// segmentInsert is one row of document_segments.
type segmentInsert struct {
	tenant, dataset, document string
	position                  int
	piece                     piece
	answer                    *string
	keywords                  []string
	status                    string
}

func insertSegment(ctx context.Context, db *sqlsession.Session, s segmentInsert) (id string, err error) {
	var keywords any
	if len(s.keywords) > 0 {
		if keywords, err = jsonText(s.keywords); err != nil {
			return "", err
		}
	}
	_, err = db.First(ctx, `INSERT INTO document_segments (tenant_id, dataset_id, document_id, position, content, answer, word_count, tokens, keywords, index_node_id, index_node_hash, status, created_by, indexing_at, completed_at) VALUES ($1::uuid, $2::uuid, $3::uuid, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13::uuid, CURRENT_TIMESTAMP, CASE WHEN $12 = 'completed' THEN CURRENT_TIMESTAMP END) RETURNING document_segments.id`,
		[]any{s.tenant, s.dataset, s.document, s.position, s.piece.content, s.answer, len([]rune(s.piece.content)),
			len(strings.Fields(s.piece.content)), keywords, s.piece.node, s.piece.hash, s.status, s.tenant}, &id)
	return id, err
}

func (a *API) updateSegment(ctx context.Context, q *request) error {
	if err := q.readBody(); err != nil {
		return err
	}
	ds, d, err := q.indexed(ctx)
	if err != nil {
		return err
	}
	s, err := q.segment(ctx, d.id)
	if err != nil {
		return err
	}
	var args segmentArgs
	if err := q.decode("segment", true, &args); err != nil {
		return err
	}
	if args.Content == nil || strings.TrimSpace(*args.Content) == "" {
		return invalidParam("Content is empty")
	}
	if err := a.core.use(ctx, a.cfg.CPU.Cost); err != nil {
		return err
	}
	content := *clean(args.Content)
	enabled := s.enabled
	if args.Enabled != nil {
		enabled = *args.Enabled
	}
	answer := s.answer
	if args.Answer != nil {
		answer = clean(args.Answer)
	}
	if a.vectors != nil && s.node != "" {
		if _, err := a.vectors.DeleteWhere(ctx, collection(ds.id), "doc_id", s.node); err != nil {
			return err
		}
	}
	p := piece{segment: s.id, node: uuid.NewString(), content: content, hash: hashText(content), document: d.id}
	if enabled {
		if err := a.addVectors(ctx, ds.id, []piece{p}); err != nil {
			return err
		}
	}
	var keywords any = s.keywords
	if args.Keywords != nil {
		if keywords, err = jsonText(args.Keywords); err != nil {
			return err
		}
	}
	if _, err := q.db.Exec(ctx, `UPDATE document_segments SET content=$1, answer=$2, word_count=$3, tokens=$4, keywords=$5, index_node_id=$6, index_node_hash=$7, enabled=$8, status='completed', completed_at=CURRENT_TIMESTAMP WHERE document_segments.id = $9::uuid`,
		content, answer, len([]rune(content)), len(strings.Fields(content)), keywords, p.node, p.hash, enabled, s.id); err != nil {
		return err
	}
	if err := q.db.Commit(ctx); err != nil {
		return err
	}
	if s, err = q.segment(ctx, d.id); err != nil {
		return err
	}
	return q.ok(object{"data", s.object(q.tenantID), "doc_form", d.form})
}

func (a *API) deleteSegment(ctx context.Context, q *request) error {
	ds, d, err := q.indexed(ctx)
	if err != nil {
		return err
	}
	s, err := q.segment(ctx, d.id)
	if err != nil {
		return err
	}
	if _, err := q.db.Exec(ctx, "DELETE FROM document_segments WHERE document_segments.id = $1::uuid", s.id); err != nil {
		return err
	}
	if err := q.db.Commit(ctx); err != nil {
		return err
	}
	if _, err := a.producer.Delay(ctx, datasetQueue, deleteSegmentTask, s.id, s.node, ds.id, d.id); err != nil {
		return err
	}
	return q.success()
}
