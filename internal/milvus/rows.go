package milvus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/milvus-io/milvus-proto/go-api/v2/commonpb"
	"github.com/milvus-io/milvus-proto/go-api/v2/milvuspb"
	"github.com/milvus-io/milvus-proto/go-api/v2/schemapb"
	"google.golang.org/protobuf/proto"
)

// Row is one entity of a dataset's collection.
type Row struct {
	// ID is the server's own number; it is set in what is read.
	ID int64
	// Content is the segment's text, at most 65535 bytes.
	Content string
	// Metadata is a JSON object.
	Metadata []byte
	// Vector has the collection's dimension; it is not read back.
	Vector []float32
}

// Hit is a row that a search found, best first.
type Hit struct {
	Row
	// Score is the inner product with the query.
	Score float32
}

// insertBatch is how many rows go in one request, as in Dify.
const insertBatch = 1000

// Insert adds rows in batches of 1000 and returns their numbers.
func (c *Client) Insert(ctx context.Context, collection string, rows []Row) ([]int64, error) {
	var ids []int64
	for start := 0; start < len(rows); start += insertBatch {
		got, err := c.insert(ctx, collection, rows[start:min(start+insertBatch, len(rows))])
		if err != nil {
			return ids, err
		}
		ids = append(ids, got...)
	}
	return ids, nil
}

func (c *Client) insert(ctx context.Context, collection string, rows []Row) ([]int64, error) {
	dim := len(rows[0].Vector)
	if dim == 0 {
		return nil, errors.New("milvus: insert: vectors are empty")
	}
	texts := make([]string, len(rows))
	metas := make([][]byte, len(rows))
	vectors := make([]float32, 0, len(rows)*dim)
	for i, r := range rows {
		if len(r.Vector) != dim {
			return nil, fmt.Errorf("milvus: insert: row %d has %d dimensions, row 0 has %d", i, len(r.Vector), dim)
		}
		texts[i], metas[i] = r.Content, r.Metadata
		vectors = append(vectors, r.Vector...)
	}
	fields := []*schemapb.FieldData{
		{
			Type: schemapb.DataType_JSON, FieldName: FieldMetadata,
			Field: &schemapb.FieldData_Scalars{Scalars: &schemapb.ScalarField{Data: &schemapb.ScalarField_JsonData{JsonData: &schemapb.JSONArray{Data: metas}}}},
		},
		{
			Type: schemapb.DataType_VarChar, FieldName: FieldContent,
			Field: &schemapb.FieldData_Scalars{Scalars: &schemapb.ScalarField{Data: &schemapb.ScalarField_StringData{StringData: &schemapb.StringArray{Data: texts}}}},
		},
		{
			Type: schemapb.DataType_FloatVector, FieldName: FieldVector,
			Field: &schemapb.FieldData_Vectors{Vectors: &schemapb.VectorField{
				Dim: int64(dim), Data: &schemapb.VectorField_FloatVector{FloatVector: &schemapb.FloatArray{Data: vectors}},
			}},
		},
	}
	ctx, cancel := c.call(ctx)
	defer cancel()
	r, err := c.rpc.Insert(ctx, &milvuspb.InsertRequest{
		DbName: c.cfg.Database, CollectionName: collection, FieldsData: fields, NumRows: uint32(len(rows)),
	})
	if err := check("insert into "+collection, r.GetStatus(), err); err != nil {
		return nil, err
	}
	c.wrote(collection, r.GetTimestamp())
	return r.GetIDs().GetIntId().GetData(), nil
}

// Search returns up to topK rows nearest to the vector by inner product, best
// first. filter is a Milvus expression; empty means all rows.
func (c *Client) Search(ctx context.Context, collection string, vector []float32, topK int, filter string) ([]Hit, error) {
	group, err := proto.Marshal(&commonpb.PlaceholderGroup{Placeholders: []*commonpb.PlaceholderValue{{
		Tag: "$0", Type: commonpb.PlaceholderType_FloatVector, Values: [][]byte{floatBytes(vector)},
	}}})
	if err != nil {
		return nil, fmt.Errorf("milvus: query vector: %w", err)
	}
	ef := max(searchEf, topK)
	ctx, cancel := c.call(ctx)
	defer cancel()
	r, err := c.rpc.Search(ctx, &milvuspb.SearchRequest{
		DbName: c.cfg.Database, CollectionName: collection, Dsl: filter, DslType: commonpb.DslType_BoolExprV1,
		SearchInput:  &milvuspb.SearchRequest_PlaceholderGroup{PlaceholderGroup: group},
		OutputFields: []string{FieldContent, FieldMetadata}, Nq: 1,
		SearchParams: []*commonpb.KeyValuePair{
			pair("anns_field", FieldVector), pair("topk", strconv.Itoa(topK)), pair("metric_type", "IP"),
			pair("round_decimal", "-1"), pair("params", fmt.Sprintf(`{"ef": %d}`, ef)),
		},
		GuaranteeTimestamp: c.guarantee(collection),
		ConsistencyLevel:   commonpb.ConsistencyLevel_Session,
	})
	if err := check("search "+collection, r.GetStatus(), err); err != nil {
		return nil, err
	}
	res := r.GetResults()
	rows, err := readRows(res.GetFieldsData(), res.GetIds().GetIntId().GetData())
	if err != nil {
		return nil, fmt.Errorf("milvus: search %s: %w", collection, err)
	}
	if len(res.GetScores()) < len(rows) {
		return nil, fmt.Errorf("milvus: search %s: %d scores for %d rows", collection, len(res.GetScores()), len(rows))
	}
	hits := make([]Hit, len(rows))
	for i := range rows {
		hits[i] = Hit{Row: rows[i], Score: res.GetScores()[i]}
	}
	return hits, nil
}

// Query returns the rows that match a Milvus expression.
func (c *Client) Query(ctx context.Context, collection, filter string) ([]Row, error) {
	ctx, cancel := c.call(ctx)
	defer cancel()
	r, err := c.rpc.Query(ctx, &milvuspb.QueryRequest{
		DbName: c.cfg.Database, CollectionName: collection, Expr: filter,
		OutputFields:       []string{FieldID, FieldContent, FieldMetadata},
		GuaranteeTimestamp: c.guarantee(collection),
		ConsistencyLevel:   commonpb.ConsistencyLevel_Session,
	})
	if err := check("query "+collection, r.GetStatus(), err); err != nil {
		return nil, err
	}
	var ids []int64
	for _, f := range r.GetFieldsData() {
		if f.GetFieldName() == FieldID {
			ids = f.GetScalars().GetLongData().GetData()
		}
	}
	rows, err := readRows(r.GetFieldsData(), ids)
	if err != nil {
		return nil, fmt.Errorf("milvus: query %s: %w", collection, err)
	}
	return rows, nil
}

// DeleteWhere removes the rows whose metadata has the text value under key. Like
// Dify it asks for the numbers first and deletes by them, which is not atomic.
func (c *Client) DeleteWhere(ctx context.Context, collection, key, value string) (int, error) {
	rows, err := c.Query(ctx, collection, fmt.Sprintf("metadata[%s] == %s", strconv.Quote(key), strconv.Quote(value)))
	if err != nil || len(rows) == 0 {
		return 0, err
	}
	ids := make([]string, len(rows))
	for i, r := range rows {
		ids[i] = strconv.FormatInt(r.ID, 10)
	}
	ctx, cancel := c.call(ctx)
	defer cancel()
	r, err := c.rpc.Delete(ctx, &milvuspb.DeleteRequest{
		DbName: c.cfg.Database, CollectionName: collection,
		Expr: FieldID + " in [" + strings.Join(ids, ",") + "]",
	})
	if err := check("delete from "+collection, r.GetStatus(), err); err != nil {
		return 0, err
	}
	c.wrote(collection, r.GetTimestamp())
	return len(rows), nil
}

func readRows(fields []*schemapb.FieldData, ids []int64) ([]Row, error) {
	rows := make([]Row, len(ids))
	for i, id := range ids {
		rows[i].ID = id
	}
	for _, f := range fields {
		switch f.GetFieldName() {
		case FieldContent:
			data := f.GetScalars().GetStringData().GetData()
			if len(data) != len(rows) {
				return nil, fmt.Errorf("field %s has %d values for %d rows", FieldContent, len(data), len(rows))
			}
			for i := range rows {
				rows[i].Content = data[i]
			}
		case FieldMetadata:
			data := f.GetScalars().GetJsonData().GetData()
			if len(data) != len(rows) {
				return nil, fmt.Errorf("field %s has %d values for %d rows", FieldMetadata, len(data), len(rows))
			}
			for i := range rows {
				rows[i].Metadata = data[i]
			}
		}
	}
	return rows, nil
}

func floatBytes(v []float32) []byte {
	b := make([]byte, 0, len(v)*4)
	for _, f := range v {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(f))
	}
	return b
}
