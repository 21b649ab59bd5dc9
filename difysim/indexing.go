package difysim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"fournines/difysim/embed"
	"fournines/difysim/sqlsession"
	"fournines/internal/milvus"
)

// piece is a segment on its way into the index.
type piece struct{ segment, node, content, hash, document string }

// ensureCollection creates a dataset's collection when it is first needed, under
// Dify's lock, and notes in Redis that it is there.
func (b *backend) ensureCollection(ctx context.Context, dataset string) error {
	name := collection(dataset)
	l, err := acquire(ctx, b.redis, "vector_indexing_lock_"+name, 20*time.Second, 20*time.Second)
	if err != nil {
		return err
	}
	defer func() {
		if err := l.release(context.WithoutCancel(ctx)); err != nil {
			b.log.Warn("vector lock stays until it expires", "err", err.Error())
		}
	}()
	_, err = b.redis.Get(ctx, "vector_indexing_"+name).Result()
	if err == nil {
		return nil
	}
	if !errors.Is(err, redis.Nil) {
		return fmt.Errorf("vector index note: %w", err)
	}
	has, err := b.vectors.HasCollection(ctx, name)
	if err != nil {
		return err
	}
	if !has {
		if err := b.vectors.CreateCollection(ctx, name, b.cfg.Vector.Dimension); err != nil {
			return err
		}
	}
	if err := b.redis.Set(ctx, "vector_indexing_"+name, 1, time.Hour).Err(); err != nil {
		return fmt.Errorf("vector index note: %w", err)
	}
	return b.unit(ctx, func(s *sqlsession.Session) error {
		structure, err := jsonText(object{"type", "milvus", "vector_store", object{"class_prefix", name}})
		if err != nil {
			return err
		}
		_, err = s.Exec(ctx, "UPDATE datasets SET index_struct=$1 WHERE datasets.id = $2::uuid", structure, dataset)
		return err
	})
}

// addVectors embeds the pieces and puts them into the dataset's collection.
func (b *backend) addVectors(ctx context.Context, dataset string, pieces []piece) error {
	if len(pieces) == 0 {
		return nil
	}
	if b.vectors == nil {
		return errors.New("no vector store is configured")
	}
	if err := b.ensureCollection(ctx, dataset); err != nil {
		return err
	}
	rows := make([]milvus.Row, len(pieces))
	for i, p := range pieces {
		if err := sleep(ctx, b.cfg.Indexing.EmbeddingDelay); err != nil {
			return err
		}
		meta, err := json.Marshal(object{"doc_id", p.node, "doc_hash", p.hash, "document_id", p.document, "dataset_id", dataset})
		if err != nil {
			return fmt.Errorf("vector metadata: %w", err)
		}
		rows[i] = milvus.Row{Content: p.content, Metadata: meta, Vector: embed.Vector(p.content, b.cfg.Vector.Dimension)}
	}
	_, err := b.vectors.Insert(ctx, collection(dataset), rows)
	return err
}

// errGone says that a task's subject was deleted before the task ran.
var errGone = errors.New("document is gone")

// step is one commit of a document's progress.
func (w *Worker) step(ctx context.Context, document, set string, args ...any) error {
	return w.unit(ctx, func(s *sqlsession.Session) error {
		n, err := s.Exec(ctx, "UPDATE documents SET "+set+", updated_at=CURRENT_TIMESTAMP WHERE documents.id = $1::uuid", append([]any{document}, args...)...)
		if err == nil && n == 0 {
			err = errGone
		}
		return err
	})
}

// indexDocuments is Dify's document_indexing_task.
func (w *Worker) indexDocuments(ctx context.Context, dataset string, documents []string) error {
	var errs []error
	for _, d := range documents {
		// Dify marks all documents first, so that all show progress.
		if err := w.step(ctx, d, "indexing_status='parsing', processing_started_at=CURRENT_TIMESTAMP"); err != nil {
			errs = append(errs, err)
		}
	}
	for _, d := range documents {
		if err := w.indexDocument(ctx, dataset, d); err != nil {
			errs = append(errs, w.failDocument(ctx, d, err))
		}
	}
	return errors.Join(errs...)
}

func (w *Worker) failDocument(ctx context.Context, document string, cause error) error {
	if errors.Is(cause, errGone) {
		w.log.Info("document was deleted before it was indexed", "document", document)
		return nil
	}
	if ctx.Err() != nil {
		return cause // the worker stops: like a killed one it leaves the document as it is
	}
	return errors.Join(cause, w.step(ctx, document, "indexing_status='error', error=$2, stopped_at=CURRENT_TIMESTAMP", cause.Error()))
}

func (w *Worker) indexDocument(ctx context.Context, dataset, document string) error {
	began := time.Now()
	text, tenant, err := w.extract(ctx, dataset, document)
	if err != nil {
		return err
	}
	if err := w.step(ctx, document, "indexing_status='splitting', parsing_completed_at=CURRENT_TIMESTAMP, word_count=$2", len([]rune(text))); err != nil {
		return err
	}
	if err := w.core.use(ctx, w.cfg.CPU.Cost); err != nil {
		return err
	}
	parts := splitText(text, w.cfg.Indexing.SegmentLength)
	pieces := make([]piece, len(parts))
	err = w.unit(ctx, func(s *sqlsession.Session) error {
		for i, content := range parts {
			pieces[i] = piece{node: uuid.NewString(), content: content, hash: hashText(content), document: document}
			id, err := insertSegment(ctx, s, segmentInsert{
				tenant: tenant, dataset: dataset, document: document, position: i + 1, piece: pieces[i], status: "indexing",
			})
			if err != nil {
				return err
			}
			pieces[i].segment = id
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := w.step(ctx, document, "indexing_status='indexing', cleaning_completed_at=CURRENT_TIMESTAMP, splitting_completed_at=CURRENT_TIMESTAMP"); err != nil {
		return err
	}
	const chunk = 10 // Dify embeds ten segments at a time
	tokens := 0
	for start := 0; start < len(pieces); start += chunk {
		part := pieces[start:min(start+chunk, len(pieces))]
		if err := w.addVectors(ctx, dataset, part); err != nil {
			return err
		}
		args := []any{}
		for _, p := range part {
			args = append(args, p.segment)
			tokens += len([]rune(p.content)) / 4
		}
		if err := w.unit(ctx, func(s *sqlsession.Session) error {
			_, err := s.Exec(ctx, "UPDATE document_segments SET status='completed', enabled=true, completed_at=CURRENT_TIMESTAMP WHERE document_segments.id::text IN ("+placeholders(len(args), 1)+")", args...)
			return err
		}); err != nil {
			return err
		}
	}
	return w.step(ctx, document, "indexing_status='completed', completed_at=CURRENT_TIMESTAMP, tokens=$2, indexing_latency=$3, error=NULL", tokens, time.Since(began).Seconds())
}

// extract reads the document's file from the shared folder.
func (w *Worker) extract(ctx context.Context, dataset, document string) (text, tenant string, err error) {
	var info string
	var key string
	err = w.unit(ctx, func(s *sqlsession.Session) error {
		found, err := s.First(ctx, `SELECT documents.tenant_id AS documents_tenant_id, coalesce(documents.data_source_info, '{}') AS documents_data_source_info
FROM documents
WHERE documents.id = $1::uuid AND documents.dataset_id = $2::uuid
 LIMIT 1`, []any{document, dataset}, &tenant, &info)
		if err != nil {
			return err
		}
		if !found {
			return errGone
		}
		var source struct {
			File string `json:"upload_file_id"`
		}
		if err := json.Unmarshal([]byte(info), &source); err != nil {
			return fmt.Errorf("source of document %s: %w", document, err)
		}
		found, err = s.First(ctx, "SELECT upload_files.key AS upload_files_key FROM upload_files WHERE upload_files.id::text = $1 LIMIT 1", []any{source.File}, &key)
		if err == nil && !found {
			err = fmt.Errorf("file %s of document %s has no row", source.File, document)
		}
		return err
	})
	if err != nil {
		return "", "", err
	}
	raw, err := os.ReadFile(filepath.Join(w.cfg.Storage.Path, filepath.FromSlash(key)))
	if err != nil {
		return "", "", fmt.Errorf("read the document's file: %w", err)
	}
	return string(raw), tenant, nil
}

// reindexDocument is Dify's document_indexing_update_task: old segments and
// vectors go, then the document is indexed.
func (w *Worker) reindexDocument(ctx context.Context, dataset, document string) error {
	if err := w.step(ctx, document, "indexing_status='parsing', processing_started_at=CURRENT_TIMESTAMP"); err != nil {
		return w.failDocument(ctx, document, err)
	}
	err := w.cleanDocument(ctx, dataset, document)
	if err == nil {
		err = w.indexDocument(ctx, dataset, document)
	}
	if err != nil {
		return w.failDocument(ctx, document, err)
	}
	return nil
}

// cleanDocument removes a document's vectors and segments.
func (w *Worker) cleanDocument(ctx context.Context, dataset, document string) error {
	if w.vectors != nil {
		if _, err := w.vectors.DeleteWhere(ctx, collection(dataset), "document_id", document); err != nil && !errors.Is(err, milvus.ErrNotFound) {
			return err
		}
	}
	return w.unit(ctx, func(s *sqlsession.Session) error {
		_, err := s.Exec(ctx, "DELETE FROM document_segments WHERE document_segments.document_id = $1::uuid", document)
		return err
	})
}

// cleanDataset removes what a deleted dataset leaves.
func (w *Worker) cleanDataset(ctx context.Context, dataset string) error {
	if w.vectors != nil {
		if err := w.vectors.DropCollection(ctx, collection(dataset)); err != nil {
			return err
		}
	}
	if err := w.redis.Del(ctx, "vector_indexing_"+collection(dataset)).Err(); err != nil {
		return fmt.Errorf("vector index note: %w", err)
	}
	return w.unit(ctx, func(s *sqlsession.Session) error {
		for _, table := range []string{"document_segments", "documents", "dataset_queries"} {
			if _, err := s.Exec(ctx, "DELETE FROM "+table+" WHERE "+table+".dataset_id = $1::uuid", dataset); err != nil {
				return err
			}
		}
		return nil
	})
}
