"""pymilvus as Dify uses it: HNSW, inner product, JSON metadata."""

import uuid

from pymilvus import CollectionSchema, DataType, FieldSchema, MilvusClient

from stack import credentials

where = credentials["milvus"]
client = MilvusClient(uri=f"http://{where['host']}:{where['port']}", user=where["user"], password=where["password"])
name = f"Vector_index_{uuid.uuid4().hex}_Node"
schema = CollectionSchema(
    [
        FieldSchema("metadata", DataType.JSON, max_length=65_535),
        FieldSchema("page_content", DataType.VARCHAR, max_length=65_535),
        FieldSchema("id", DataType.INT64, is_primary=True, auto_id=True),
        FieldSchema("vector", DataType.FLOAT_VECTOR, dim=8),
    ]
)
index = client.prepare_index_params()
index.add_index(field_name="vector", index_type="HNSW", metric_type="IP", params={"M": 8, "efConstruction": 64})
client.create_collection(collection_name=name, schema=schema, index_params=index, consistency_level="Session")
try:
    rows = [
        {"metadata": {"doc_id": str(i)}, "page_content": f"page {i}", "vector": [1.0 if j == i % 8 else 0.0 for j in range(8)]}
        for i in range(80)
    ]
    assert client.insert(name, rows)["insert_count"] == 80
    hits = client.search(name, [[0, 0, 0, 1.0, 0, 0, 0, 0]], limit=4, output_fields=["page_content", "metadata"])[0]
    assert len(hits) == 4 and all(int(h["entity"]["metadata"]["doc_id"]) % 8 == 3 for h in hits), hits
    found = client.query(name, filter='metadata["doc_id"] in ["7"]', output_fields=["page_content"])
    assert [f["page_content"] for f in found] == ["page 7"], found
    client.delete(name, ids=[f["id"] for f in found])
    assert client.query(name, filter='metadata["doc_id"] in ["7"]', consistency_level="Strong") == []
finally:
    client.drop_collection(name)
print("ok")
