package difysim

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"fournines/component/milvus/milvustest"
	"fournines/internal/eventually"
)

const handbook = `A quorum is a majority of the members of a cluster. Three zones keep a quorum when one zone is lost.

PostgreSQL replicates its write ahead log to standbys. Synchronous replication keeps acknowledged commits.

Bananas are yellow fruits that grow in warm countries.`

// withMilvus points the servers at a real Milvus.
func withMilvus(t *testing.T, s *servers) {
	t.Helper()
	m := milvustest.New(t, milvustest.Options{Name: "milvus-difysim-test", Host: "127.67.1.40", Port: 25530})
	host, port, err := net.SplitHostPort(m.Address)
	if err != nil {
		t.Fatal(err)
	}
	s.cfg.Vector.Host, s.cfg.Vector.User, s.cfg.Vector.password = host, m.User, m.Password
	fmt.Sscan(port, &s.cfg.Vector.Port)
	s.cfg.Vector.Timeout = patience
}

// waitIndexed waits until every document of a batch has the status.
func (in *instance) waitIndexed(dataset, batch, status string) map[string]any {
	in.t.Helper()
	var doc map[string]any
	eventually.Nil(in.t, patience, func() error {
		got := in.must("GET", "/v1/datasets/"+dataset+"/documents/"+batch+"/indexing-status", datasetKey, nil)
		doc = got["data"].([]any)[0].(map[string]any)
		if doc["indexing_status"] != status {
			return fmt.Errorf("document is %v (%v)", doc["indexing_status"], doc["error"])
		}
		return nil
	})
	return doc
}

func (in *instance) found(dataset, query string, more ...any) []string {
	in.t.Helper()
	got := in.must("POST", "/v1/datasets/"+dataset+"/retrieve", datasetKey, append(object{"query", query}, more...))
	var out []string
	for _, r := range got["records"].([]any) {
		seg := r.(map[string]any)["segment"].(map[string]any)
		out = append(out, text(seg, "content"))
	}
	return out
}

// TestKnowledge takes documents through the worker into Milvus and back, and
// kills a worker on the way.
func TestKnowledge(t *testing.T) {
	s := newServers(t, true)
	withMilvus(t, s)
	in := startAPI(t, s.cfg)

	dataset := text(in.must("POST", "/v1/datasets", datasetKey, object{"name", "facts"}), "id")
	if r := in.call("POST", "/v1/datasets", datasetKey, object{"name", "facts"}); r.status != 409 || r.json["code"] != "dataset_name_duplicate" {
		t.Errorf("same name twice: %d %s", r.status, r.body)
	}
	if got := in.found(dataset, "anything"); len(got) != 0 {
		t.Errorf("an empty dataset has %q", got)
	}
	created := in.must("POST", "/v1/datasets/"+dataset+"/document/create_by_text", datasetKey,
		object{"name", "handbook", "text", handbook, "indexing_technique", "high_quality"})
	batch, document := text(created, "batch"), text(created["document"].(map[string]any), "id")
	in.waitIndexed(dataset, batch, "waiting") // nobody works yet
	if n, err := s.redis.Client(t, 1).LLen(t.Context(), "dataset").Result(); err != nil || n != 1 {
		t.Fatalf("%d messages in Celery's queue (%v), want 1", n, err)
	}

	worker := startWorker(t, s.cfg)
	done := in.waitIndexed(dataset, batch, "completed")
	if done["total_segments"] != 3.0 || done["completed_segments"] != 3.0 {
		t.Errorf("indexing status %v", done)
	}
	// The vectors are another client's: Milvus shows them a moment later, in Dify too.
	eventually.Nil(t, patience, func() error {
		if got := in.found(dataset, "quorum of zones, acknowledged commits, yellow bananas", "retrieval_model", object{"top_k", 10}); len(got) != 3 {
			return fmt.Errorf("found %q", got)
		}
		return nil
	})
	var queriesBefore, hitsBefore int
	if err := s.difyRow(noted, &queriesBefore, &hitsBefore); err != nil {
		t.Fatal(err)
	}
	if got := in.found(dataset, "which fruit is yellow", "retrieval_model", object{"top_k", 1}); len(got) != 1 || !strings.Contains(got[0], "Bananas") {
		t.Errorf("found %q", got)
	}
	quorum := in.found(dataset, "majority of the cluster members: quorum")
	if len(quorum) == 0 || !strings.Contains(quorum[0], "quorum") {
		t.Errorf("found %q", quorum)
	}
	if got := in.found(dataset, "yellow", "retrieval_model", object{"score_threshold_enabled", true, "score_threshold", 0.99}); len(got) != 0 {
		t.Errorf("found %q above the threshold", got)
	}
	var queries, hits int
	if err := s.difyRow(noted, &queries, &hits); err != nil || queries-queriesBefore != 3 || hits-hitsBefore != 1+len(quorum) {
		t.Errorf("%d queries and %d hits were noted (%v), want 3 and %d", queries-queriesBefore, hits-hitsBefore, err, 1+len(quorum))
	}

	chatted := in.must("POST", "/v1/chat-messages", chatKey, object{"query", "yellow bananas in zones", "user", "u", "inputs", object{"sim_dataset_ids", []string{dataset}}})
	sources, _ := chatted["metadata"].(map[string]any)["retriever_resources"].([]any)
	if len(sources) == 0 || sources[0].(map[string]any)["document_name"] != "handbook" {
		t.Errorf("sources %v", sources)
	}

	segments := "/v1/datasets/" + dataset + "/documents/" + document + "/segments"
	added := in.must("POST", segments, datasetKey, object{"segments", []any{object{"content", "Walruses have tusks.", "keywords", []string{"walrus"}}}})
	segment := text(added["data"].([]any)[0].(map[string]any), "id")
	// Written by this very client, so it is seen at once.
	if got := in.found(dataset, "walruses tusks"); len(got) == 0 || got[0] != "Walruses have tusks." {
		t.Errorf("found %q", got)
	}
	in.must("POST", segments+"/"+segment, datasetKey, object{"segment", object{"content", "Narwhals have one tusk."}})
	eventually.Nil(t, patience, func() error {
		if got := in.found(dataset, "narwhals"); len(got) == 0 || got[0] != "Narwhals have one tusk." {
			return fmt.Errorf("found %q", got)
		}
		return nil
	})
	if got := in.must("GET", segments+"?keyword=narwhal", datasetKey, nil)["data"].([]any); len(got) != 1 {
		t.Errorf("segments %v", got)
	}
	in.must("DELETE", segments+"/"+segment, datasetKey, nil)
	eventually.Nil(t, patience, func() error {
		for _, got := range in.found(dataset, "narwhals") {
			if strings.Contains(got, "Narwhals") {
				return errors.New("the deleted segment is still found")
			}
		}
		return nil
	})
	updated := in.must("POST", "/v1/datasets/"+dataset+"/documents/"+document+"/update_by_text", datasetKey, object{"name", "zoo", "text", "Zebras have stripes."})
	in.waitIndexed(dataset, text(updated, "batch"), "completed")
	eventually.Nil(t, patience, func() error {
		if got := in.found(dataset, "zebras"); len(got) != 1 || got[0] != "Zebras have stripes." {
			return fmt.Errorf("found %q after the update", got)
		}
		return nil
	})

	t.Run("killed worker", func(t *testing.T) {
		if err := worker.stop(); err != nil {
			t.Fatal(err)
		}
		in := &instance{t: t, base: in.base}
		slow := startProcess(t, s.cfg, "MODE=worker", "DIFYSIM_TEST_EMBEDDING_DELAY=1m")
		slow.waitReady()
		made := in.must("POST", "/v1/datasets/"+dataset+"/document/create-by-text", datasetKey, object{"name", "lost", "text", handbook})
		batch := text(made, "batch")
		in.waitIndexed(dataset, batch, "indexing")
		slow.kill()
		// The task was acknowledged before it ran: a new worker does not get it.
		startWorker(t, s.cfg)
		next := in.must("POST", "/v1/datasets/"+dataset+"/document/create_by_text", datasetKey, object{"name", "next", "text", "Otters hold hands."})
		in.waitIndexed(dataset, text(next, "batch"), "completed")
		doc := in.waitIndexed(dataset, batch, "indexing")
		for _, key := range []string{unackedName, unackedName + "_index"} {
			if n, err := s.redis.Client(t, 1).Exists(t.Context(), key).Result(); err != nil || n != 0 {
				t.Errorf("%s has entries (%v)", key, err)
			}
		}
		r := in.call("DELETE", "/v1/datasets/"+dataset+"/documents/"+text(doc, "id"), datasetKey, nil)
		if r.status != http.StatusBadRequest || r.json["code"] != "document_indexing" {
			t.Errorf("delete while indexing: %d %s", r.status, r.body)
		}
	})

	startWorker(t, s.cfg)
	docs := in.must("GET", "/v1/datasets/"+dataset+"/documents?keyword=ZOO", datasetKey, nil)
	if docs["total"] != 1.0 {
		t.Errorf("documents %v", docs)
	}
	in.must("DELETE", "/v1/datasets/"+dataset+"/documents/"+document, datasetKey, nil)
	eventually.Nil(t, patience, func() error {
		for _, got := range in.found(dataset, "zebras") {
			if strings.Contains(got, "Zebras") {
				return errors.New("the deleted document is still found")
			}
		}
		return nil
	})
	if r := in.call("DELETE", "/v1/datasets/"+dataset, datasetKey, nil); r.status != http.StatusNoContent {
		t.Errorf("delete dataset: %d %s", r.status, r.body)
	}
	eventually.Nil(t, patience, func() error {
		var left int
		if err := s.difyRow("SELECT count(*) FROM documents", &left); err != nil {
			return err
		}
		if left != 0 {
			return fmt.Errorf("%d documents are left", left)
		}
		return nil
	})
}

// noted counts what retrieval leaves behind.
const noted = "SELECT (SELECT count(*) FROM dataset_queries), (SELECT sum(hit_count) FROM document_segments)"

// unackedName is the hash in which kombu keeps what is not acknowledged.
const unackedName = "unacked"

// TestMigration runs migrations at once and again, and shows that instances wait
// for them.
func TestMigration(t *testing.T) {
	s := newServers(t, false)
	waiting := startProcess(t, s.cfg, "MODE=api", "MIGRATION_ENABLED=false")
	eventually.Nil(t, patience, func() error {
		req := waiting.request("GET", "/difysim/ready", "", nil)
		res, err := client.Do(req)
		if err != nil {
			return err
		}
		res.Body.Close()
		return nil
	})
	eventually.Nil(t, patience, func() error {
		if r := waiting.call("GET", "/difysim/ready", "", nil); r.status != 503 || !strings.Contains(r.body, "run difysim migrate") {
			return fmt.Errorf("before the migration: %d %s", r.status, r.body)
		}
		return nil
	})
	for _, path := range []string{"/v1/parameters", "/health"} {
		if r := waiting.call("GET", path, chatKey, nil); r.status != 503 {
			t.Errorf("%s before the migration: %d %s", path, r.status, r.body)
		}
	}
	errs := make(chan error, 3)
	for range cap(errs) {
		go func() {
			_, err := Migrate(t.Context(), s.cfg, testLog(t), false)
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if skipped, err := Migrate(t.Context(), s.cfg, testLog(t), true); err != nil || skipped {
		t.Errorf("again: skipped %v, %v", skipped, err)
	}
	waiting.waitReady()
	waiting.must("GET", "/v1/parameters", chatKey, nil)

	l, err := acquire(t.Context(), s.redis.Client(t, 0), migrationLock, time.Minute, 0)
	if err != nil {
		t.Fatal(err)
	}
	if skipped, err := Migrate(t.Context(), s.cfg, testLog(t), true); err != nil || !skipped {
		t.Errorf("while another migrates: skipped %v, %v", skipped, err)
	}
	if held, err := l.extend(t.Context()); err != nil || !held {
		t.Errorf("extend: %v %v", held, err)
	}
	if err := l.release(t.Context()); err != nil {
		t.Error(err)
	}
	if held, err := l.extend(t.Context()); err != nil || held {
		t.Errorf("extend after release: %v %v", held, err)
	}
	var apps, versions int
	if err := s.difyRow("SELECT (SELECT count(*) FROM apps), (SELECT count(*) FROM alembic_version)", &apps, &versions); err != nil || apps != 6 || versions != 1 {
		t.Errorf("%d apps, %d versions (%v)", apps, versions, err)
	}
	wrong := s.cfg.WithPasswords("wrong", "", "")
	if _, err := Migrate(t.Context(), wrong, testLog(t), false); err == nil {
		t.Error("a wrong password was waited for and accepted")
	}
	// As the image starts by default: migrate, then serve.
	startProcess(t, s.cfg, "MIGRATION_ENABLED=true").waitReady()
}
