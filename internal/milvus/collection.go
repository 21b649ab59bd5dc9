package milvus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/milvus-io/milvus-proto/go-api/v2/commonpb"
	"github.com/milvus-io/milvus-proto/go-api/v2/milvuspb"
	"github.com/milvus-io/milvus-proto/go-api/v2/schemapb"
	"google.golang.org/protobuf/proto"
)

// The fields of a dataset's collection, as Dify names them.
const (
	FieldID       = "id"
	FieldContent  = "page_content"
	FieldMetadata = "metadata"
	FieldVector   = "vector"
)

// The index that Dify builds.
const (
	hnswM              = 8
	hnswEfConstruction = 64
	searchEf           = 64
)

// Collection describes a collection that exists.
type Collection struct {
	Name string
	// Dimension is the length of the vectors.
	Dimension int
	// Loaded tells whether it can be searched now.
	Loaded bool
}

// HasCollection tells whether the collection exists.
func (c *Client) HasCollection(ctx context.Context, name string) (bool, error) {
	ctx, cancel := c.call(ctx)
	defer cancel()
	r, err := c.rpc.HasCollection(ctx, &milvuspb.HasCollectionRequest{DbName: c.cfg.Database, CollectionName: name})
	if err := check("has collection "+name, r.GetStatus(), err); err != nil {
		if errors.Is(err, ErrNotFound) {
			return false, nil
		}
		return false, err
	}
	return r.GetValue(), nil
}

// Collections lists the names of all collections.
func (c *Client) Collections(ctx context.Context) ([]string, error) {
	ctx, cancel := c.call(ctx)
	defer cancel()
	r, err := c.rpc.ShowCollections(ctx, &milvuspb.ShowCollectionsRequest{DbName: c.cfg.Database})
	if err := check("show collections", r.GetStatus(), err); err != nil {
		return nil, err
	}
	return r.GetCollectionNames(), nil
}

// Describe returns what the server knows of a collection, or ErrNotFound.
func (c *Client) Describe(ctx context.Context, name string) (Collection, error) {
	dctx, cancel := c.call(ctx)
	defer cancel()
	r, err := c.rpc.DescribeCollection(dctx, &milvuspb.DescribeCollectionRequest{DbName: c.cfg.Database, CollectionName: name})
	if err := check("describe "+name, r.GetStatus(), err); err != nil {
		return Collection{}, err
	}
	out := Collection{Name: name}
	for _, f := range r.GetSchema().GetFields() {
		if f.GetDataType() != schemapb.DataType_FloatVector {
			continue
		}
		for _, p := range f.GetTypeParams() {
			if p.GetKey() == "dim" {
				if out.Dimension, err = strconv.Atoi(p.GetValue()); err != nil {
					return Collection{}, fmt.Errorf("milvus: dimension of %s: %w", name, err)
				}
			}
		}
	}
	lctx, lcancel := c.call(ctx)
	defer lcancel()
	s, err := c.rpc.GetLoadState(lctx, &milvuspb.GetLoadStateRequest{DbName: c.cfg.Database, CollectionName: name})
	if err := check("load state of "+name, s.GetStatus(), err); err != nil {
		return Collection{}, err
	}
	out.Loaded = s.GetState() == commonpb.LoadState_LoadStateLoaded
	return out, nil
}

func pair(key, value string) *commonpb.KeyValuePair {
	return &commonpb.KeyValuePair{Key: key, Value: value}
}

// CreateCollection creates a dataset's collection with vectors of the given
// length (1 to 32768), its HNSW index with inner product, and loads it. It
// returns when the collection can be searched.
func (c *Client) CreateCollection(ctx context.Context, name string, dimension int) error {
	if dimension < 1 || dimension > 32768 {
		return fmt.Errorf("milvus: dimension %d: want 1 to 32768", dimension)
	}
	schema := &schemapb.CollectionSchema{Name: name, Fields: []*schemapb.FieldSchema{
		{Name: FieldMetadata, DataType: schemapb.DataType_JSON},
		{Name: FieldContent, DataType: schemapb.DataType_VarChar, TypeParams: []*commonpb.KeyValuePair{pair("max_length", "65535")}},
		{Name: FieldID, DataType: schemapb.DataType_Int64, IsPrimaryKey: true, AutoID: true},
		{Name: FieldVector, DataType: schemapb.DataType_FloatVector, TypeParams: []*commonpb.KeyValuePair{pair("dim", strconv.Itoa(dimension))}},
	}}
	raw, err := proto.Marshal(schema)
	if err != nil {
		return fmt.Errorf("milvus: schema of %s: %w", name, err)
	}
	cctx, cancel := c.call(ctx)
	defer cancel()
	st, err := c.rpc.CreateCollection(cctx, &milvuspb.CreateCollectionRequest{
		DbName: c.cfg.Database, CollectionName: name, Schema: raw, ShardsNum: 1,
		ConsistencyLevel: commonpb.ConsistencyLevel_Session,
	})
	if err := check("create collection "+name, st, err); err != nil {
		return err
	}
	ictx, icancel := c.call(ctx)
	defer icancel()
	st, err = c.rpc.CreateIndex(ictx, &milvuspb.CreateIndexRequest{
		DbName: c.cfg.Database, CollectionName: name, FieldName: FieldVector,
		ExtraParams: []*commonpb.KeyValuePair{
			pair("index_type", "HNSW"), pair("metric_type", "IP"),
			pair("params", fmt.Sprintf(`{"M": %d, "efConstruction": %d}`, hnswM, hnswEfConstruction)),
		},
	})
	if err := check("create index on "+name, st, err); err != nil {
		return err
	}
	return c.Load(ctx, name)
}

// Load loads a collection and waits until it can be searched.
func (c *Client) Load(ctx context.Context, name string) error {
	lctx, cancel := c.call(ctx)
	defer cancel()
	st, err := c.rpc.LoadCollection(lctx, &milvuspb.LoadCollectionRequest{DbName: c.cfg.Database, CollectionName: name, ReplicaNumber: 1})
	if err := check("load "+name, st, err); err != nil {
		return err
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		d, err := c.Describe(lctx, name)
		if err != nil {
			return err
		}
		if d.Loaded {
			return nil
		}
		select {
		case <-lctx.Done():
			return fmt.Errorf("milvus: load %s: %w", name, lctx.Err())
		case <-tick.C:
		}
	}
}

// DropCollection removes a collection; one that is not there is no error.
func (c *Client) DropCollection(ctx context.Context, name string) error {
	ctx, cancel := c.call(ctx)
	defer cancel()
	st, err := c.rpc.DropCollection(ctx, &milvuspb.DropCollectionRequest{DbName: c.cfg.Database, CollectionName: name})
	if err := check("drop "+name, st, err); err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	return nil
}
