package difysim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"fournines/difysim/sqlsession"
	"fournines/internal/milvus"
)

// maxQuery is Dify's limit of a retrieval query, in characters.
const maxQuery = 250

func limitClause(n int) string { return "\n LIMIT " + strconv.Itoa(n) }

// searchRequest is one retrieval from one dataset.
type searchRequest struct {
	tenantID, datasetID, query string
	topK                       int
	threshold                  float64
	source, appID, userID      string
}

// searchRecord is one segment that was found.
type searchRecord struct {
	segmentID, documentID, documentName, dataSourceType, docType string
	content, answer, nodeID, nodeHash, status                    string
	position, words, tokens, hits                                int
	enabled                                                      bool
	created                                                      time.Time
	indexing, completed                                          *time.Time
	keywords, metadata                                           *string
	score                                                        float64
}

type searchResult struct {
	datasetName string
	records     []searchRecord
}

func errNoDataset() *apiError { return notFound("Dataset not found.") }

// search embeds the query, asks Milvus, notes the query and the hits.
func (b *backend) search(ctx context.Context, sr searchRequest) (searchResult, error) {
	if b.stub != nil {
		return b.stub.search(sr), nil
	}
	var out searchResult
	var structure *string
	err := b.unit(ctx, func(s *sqlsession.Session) error {
		found, err := s.First(ctx, `SELECT datasets.name AS datasets_name, datasets.index_struct AS datasets_index_struct
FROM datasets
WHERE datasets.id = $1::uuid AND datasets.tenant_id = $2::uuid
 LIMIT 1`, []any{sr.datasetID, sr.tenantID}, &out.datasetName, &structure)
		if err == nil && !found {
			return errNoDataset()
		}
		return err
	})
	if err != nil {
		return searchResult{}, err
	}
	scores := map[string]float64{}
	var order []string
	if structure != nil { // without one nothing was ever indexed
		if b.vectors == nil {
			return searchResult{}, errors.New("no vector store is configured")
		}
		vector, err := b.embedQuery(ctx, sr.query)
		if err != nil {
			return searchResult{}, err
		}
		hits, err := b.vectors.Search(ctx, collection(sr.datasetID), vector, sr.topK, "")
		if err != nil && !errors.Is(err, milvus.ErrNotFound) {
			return searchResult{}, err
		}
		for _, h := range hits {
			var meta struct {
				NodeID string `json:"doc_id"`
			}
			if json.Unmarshal(h.Metadata, &meta) != nil || meta.NodeID == "" || float64(h.Score) < sr.threshold {
				continue
			}
			if _, seen := scores[meta.NodeID]; !seen {
				order = append(order, meta.NodeID)
				scores[meta.NodeID] = float64(h.Score)
			}
		}
	}
	err = b.unit(ctx, func(s *sqlsession.Session) error {
		var app any
		if sr.appID != "" {
			app = sr.appID
		}
		role := "account"
		if sr.source == "app" {
			role = "end_user"
		}
		if _, err := s.Exec(ctx, `INSERT INTO dataset_queries (dataset_id, content, source, source_app_id, created_by_role, created_by) VALUES ($1::uuid, $2, $3, $4::uuid, $5, $6::uuid)`,
			sr.datasetID, sr.query, sr.source, app, role, sr.userID); err != nil {
			return err
		}
		return s.Commit(ctx)
	})
	if err != nil || len(order) == 0 {
		return out, err
	}
	byNode := map[string]searchRecord{}
	in := placeholders(len(order), 2)
	args := []any{sr.datasetID}
	for _, id := range order {
		args = append(args, id)
	}
	err = b.unit(ctx, func(s *sqlsession.Session) error {
		err := s.Rows(ctx, `SELECT s.id, s.document_id, d.name, d.data_source_type, coalesce(d.doc_type, ''), s.content, coalesce(s.answer, ''), s.index_node_id, coalesce(s.index_node_hash, ''), s.status, s.position, s.word_count, s.tokens, s.hit_count, s.enabled, s.created_at, s.indexing_at, s.completed_at, s.keywords, d.doc_metadata
FROM document_segments AS s JOIN documents AS d ON d.id = s.document_id
WHERE s.dataset_id = $1::uuid AND s.enabled = true AND s.status = 'completed' AND d.enabled = true AND d.archived = false AND s.index_node_id IN (`+in+`)`, args, func(scan func(...any) error) error {
			var r searchRecord
			if err := scan(&r.segmentID, &r.documentID, &r.documentName, &r.dataSourceType, &r.docType, &r.content, &r.answer, &r.nodeID, &r.nodeHash, &r.status,
				&r.position, &r.words, &r.tokens, &r.hits, &r.enabled, &r.created, &r.indexing, &r.completed, &r.keywords, &r.metadata); err != nil {
				return err
			}
			r.score = scores[r.nodeID]
			byNode[r.nodeID] = r
			return nil
		})
		if err != nil {
			return err
		}
		_, err = s.Exec(ctx, "UPDATE document_segments SET hit_count=(document_segments.hit_count + 1) WHERE document_segments.dataset_id = $1::uuid AND document_segments.index_node_id IN ("+in+")", args...)
		return err
	})
	if err != nil {
		return searchResult{}, err
	}
	for _, id := range order {
		if r, ok := byNode[id]; ok {
			out.records = append(out.records, r)
		}
	}
	return out, nil
}

func placeholders(n, from int) string {
	p := make([]string, n)
	for i := range p {
		p[i] = "$" + strconv.Itoa(from+i)
	}
	return strings.Join(p, ", ")
}

// retrieve answers POST /datasets/{id}/retrieve and hit-testing.
func (a *API) retrieve(ctx context.Context, q *request) error {
	if err := q.readBody(); err != nil {
		return err
	}
	text, err := q.cleanText("query", true)
	if err != nil {
		return err
	}
	if text == "" || len([]rune(text)) > maxQuery {
		return invalidParam("Query is required and cannot exceed %d characters", maxQuery)
	}
	var model struct {
		SearchMethod string   `json:"search_method"`
		TopK         *int     `json:"top_k"`
		Enabled      bool     `json:"score_threshold_enabled"`
		Threshold    *float64 `json:"score_threshold"`
	}
	if err := q.decode("retrieval_model", false, &model); err != nil {
		return err
	}
	switch model.SearchMethod {
	case "", "semantic_search", "full_text_search", "hybrid_search", "keyword_search":
	default:
		return invalidParam("search_method %q is not known", model.SearchMethod)
	}
	sr := searchRequest{
		tenantID: q.tenantID, datasetID: q.r.PathValue("dataset"), query: text, topK: 4,
		source: "hit_testing", userID: q.tenantID,
	}
	if model.TopK != nil {
		if sr.topK = *model.TopK; sr.topK < 1 || sr.topK > 100 {
			return invalidParam("top_k must be 1 to 100")
		}
	}
	if model.Enabled && model.Threshold != nil {
		sr.threshold = *model.Threshold
	}
	if err := a.core.use(ctx, a.cfg.CPU.Cost); err != nil {
		return err
	}
	found, err := a.search(ctx, sr)
	if err != nil {
		var known *apiError
		if errors.As(err, &known) {
			return err
		}
		return fmt.Errorf("retrieve: %w", err)
	}
	records := []any{}
	for _, r := range found.records {
		records = append(records, object{
			"segment", object{
				"id", r.segmentID, "position", r.position, "document_id", r.documentID, "content", r.content, "answer", nullable(r.answer),
				"word_count", r.words, "tokens", r.tokens, "keywords", jsonColumn(r.keywords, "[]"), "index_node_id", r.nodeID,
				"index_node_hash", r.nodeHash, "hit_count", r.hits, "enabled", r.enabled, "disabled_at", nil, "disabled_by", nil,
				"status", r.status, "created_by", q.tenantID, "created_at", r.created.Unix(), "indexing_at", unix(r.indexing),
				"completed_at", unix(r.completed), "error", nil, "stopped_at", nil,
				"document", object{
					"id", r.documentID, "data_source_type", r.dataSourceType, "name", r.documentName,
					"doc_type", nullable(r.docType), "doc_metadata", jsonColumn(r.metadata, "null"),
				},
			},
			"child_chunks", nil, "score", r.score, "tsne_position", nil,
		})
	}
	return q.ok(object{"query", object{"content", text}, "records", records})
}

func nullable(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func unix(t *time.Time) any {
	if t == nil {
		return nil
	}
	return t.Unix()
}
