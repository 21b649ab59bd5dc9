package milvus_test

import (
	"errors"
	"fmt"
	"math"
	"testing"
	"time"

	"go.uber.org/goleak"

	"fournines/component/milvus/milvustest"
	"fournines/internal/eventually"
	"fournines/internal/milvus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func unit(angle float64) []float32 {
	return []float32{float32(math.Cos(angle)), float32(math.Sin(angle)), 0, 0, 0, 0, 0, 0}
}

// TestCollectionLife goes through all calls against a real Milvus.
func TestCollectionLife(t *testing.T) {
	cfg := milvustest.New(t, milvustest.Options{Name: "milvus-client-test", Host: "127.66.1.40", Port: 24530})
	cfg.Timeout = 60 * time.Second
	c, err := milvus.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	ctx := t.Context()
	name := fmt.Sprintf("Vector_index_test_%d_Node", time.Now().UnixNano())
	if _, err := c.Connect(ctx); err != nil {
		t.Fatal(err)
	}
	if has, err := c.HasCollection(ctx, name); err != nil || has {
		t.Fatalf("before: %v %v", has, err)
	}
	if _, err := c.Search(ctx, name, unit(0), 1, ""); !errors.Is(err, milvus.ErrNotFound) {
		t.Errorf("search of nothing: %v", err)
	}
	if _, err := c.Describe(ctx, name); !errors.Is(err, milvus.ErrNotFound) {
		t.Errorf("describe of nothing: %v", err)
	}
	if err := c.DropCollection(ctx, name); err != nil {
		t.Errorf("drop of nothing: %v", err)
	}
	if err := c.CreateCollection(ctx, name, 8); err != nil {
		t.Fatal(err)
	}
	d, err := c.Describe(ctx, name)
	if err != nil || d.Dimension != 8 || !d.Loaded {
		t.Fatalf("describe: %+v %v", d, err)
	}
	var rows []milvus.Row
	for i := range 3 {
		rows = append(rows, milvus.Row{
			Content: fmt.Sprintf("text %d", i), Metadata: fmt.Appendf(nil, `{"doc_id":"n%d","document_id":"d%d"}`, i, i/2), Vector: unit(float64(i) * 0.5),
		})
	}
	if ids, err := c.Insert(ctx, name, rows); err != nil || len(ids) != 3 {
		t.Fatalf("insert: %v %v", ids, err)
	}
	hits, err := c.Search(ctx, name, unit(0.1), 2, "")
	if err != nil || len(hits) != 2 || hits[0].Content != "text 0" || hits[1].Content != "text 1" {
		t.Fatalf("search: %+v %v", hits, err)
	}
	if want := math.Cos(0.1); math.Abs(float64(hits[0].Score)-want) > 0.001 {
		t.Errorf("score %v, want the inner product %v", hits[0].Score, want)
	}
	if string(hits[0].Metadata) == "" {
		t.Error("metadata is missing")
	}
	if n, err := c.DeleteWhere(ctx, name, "document_id", "d0"); err != nil || n != 2 {
		t.Fatalf("delete: %d %v", n, err)
	}
	eventually.Nil(t, 30*time.Second, func() error {
		left, err := c.Query(ctx, name, `metadata["document_id"] != ""`)
		if err == nil && (len(left) != 1 || left[0].Content != "text 2") {
			err = fmt.Errorf("left: %+v", left)
		}
		return err
	})
	if _, err := c.Insert(ctx, name, []milvus.Row{{Vector: []float32{1}}, {Vector: []float32{1, 2}}}); err == nil {
		t.Error("rows of different dimensions were taken")
	}
	if err := c.DropCollection(ctx, name); err != nil {
		t.Fatal(err)
	}
}

// TestUnreachable makes sure that a Milvus that is away is an error in time.
func TestUnreachable(t *testing.T) {
	c, err := milvus.New(milvus.Config{Address: "127.0.0.1:1", Timeout: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.HasCollection(t.Context(), "x"); !milvus.Unavailable(err) {
		t.Errorf("got %v", err)
	}
	if _, err := milvus.New(milvus.Config{}); err == nil {
		t.Error("an empty address was accepted")
	}
	if err := c.CreateCollection(t.Context(), "x", 0); err == nil {
		t.Error("dimension 0 was accepted")
	}
}
