package dify

import "testing"

const (
	setID = "2F1c0f3a-0000-4000-8000-00000000000a"
	setLo = "2f1c0f3a-0000-4000-8000-00000000000a"
)

func TestRetrieval(t *testing.T) {
	for _, tc := range []struct {
		method, path, want string
	}{
		{"POST", "/v1/datasets/" + setID + "/retrieve", setLo},
		{"POST", "/v1/datasets/" + setLo + "/hit-testing", setLo},
		{"GET", "/v1/datasets/" + setID + "/retrieve", ""},
		{"POST", "/v1/datasets/" + setID + "/retrieve/", ""},
		{"POST", "/v1/datasets/" + setID + "/documents", ""},
		{"POST", "/v1/datasets/1/retrieve", ""},
		{"POST", "/console/api/datasets/" + setID + "/hit-testing", ""},
		{"POST", "/v1//datasets/" + setID + "/retrieve", ""},
	} {
		if got, ok := Retrieval(tc.method, tc.path); got != tc.want || ok != (tc.want != "") {
			t.Errorf("%s %s: got %q, %v", tc.method, tc.path, got, ok)
		}
	}
}

func TestKnowledgeWrite(t *testing.T) {
	for _, tc := range []struct {
		method, path, dataset string
		writes                bool
	}{
		{"POST", "/v1/datasets/" + setID + "/document/create_by_text", setLo, true},
		{"POST", "/v1/datasets/" + setID + "/document/create-by-file", setLo, true},
		{"PATCH", "/v1/datasets/" + setID, setLo, true},
		{"DELETE", "/v1/datasets/" + setID + "/documents/d/segments/s", setLo, true},
		{"POST", "/console/api/datasets/" + setID + "/documents", setLo, true},
		{"PATCH", "/console/api/datasets/" + setID + "/documents/status/disable/batch", setLo, true},
		{"POST", "/v1/datasets/" + setID + "/something-new", setLo, true},
		{"POST", "/v1/datasets/" + setID + "/retrieve", "", false},
		{"POST", "/console/api/datasets/" + setID + "/hit-testing", "", false},
		{"GET", "/v1/datasets/" + setID + "/documents", "", false},
		{"POST", "/v1/datasets", "", false},
		{"POST", "/v1/datasets/tags/binding", "", false},
		{"POST", "/console/api/datasets/init", "", false},
		{"DELETE", "/console/api/datasets/api-keys/" + setID, "", true},
		{"PATCH", "/console/api/datasets/external-knowledge-api/" + setID, "", true},
		{"POST", "/console/api/rag/pipelines/" + setID + "/workflows/published/run", "", true},
		// What the instance may read in another way is a write to anything.
		{"POST", "/v1/datasets//" + setID + "/documents", "", true},
		{"DELETE", "/v1/datasets/" + setID + "/../" + setLo, "", true},
		{"POST", "/v1/chat-messages", "", false},
	} {
		if got, writes := KnowledgeWrite(tc.method, tc.path); got != tc.dataset || writes != tc.writes {
			t.Errorf("%s %s: got %q, %v, want %q, %v", tc.method, tc.path, got, writes, tc.dataset, tc.writes)
		}
	}
}

func TestIndexing(t *testing.T) {
	for answer, want := range map[string]string{
		`{"document":{"id":"d"},"batch":"20240101000000123456"}`: "/v1/datasets/" + setLo + "/documents/20240101000000123456/indexing-status",
		`{"document":{"id":"d"},"batch":"../x"}`:                 "",
		`{"batch":7}`:                                            "",
		`{"result":"success"}`:                                   "",
		`not JSON`:                                               "",
	} {
		if got := IndexingPath("/v1/datasets/"+setID+"/document/create_by_text", setLo, []byte(answer)); got != want {
			t.Errorf("%s: got %q, want %q", answer, got, want)
		}
	}
	if got := IndexingPath("/console/api/datasets/x/documents", setLo, []byte(`{"batch":"b"}`)); got != "/console/api/datasets/"+setLo+"/batch/b/indexing-status" {
		t.Errorf("console: got %q", got)
	}
	for answer, want := range map[string][2]bool{
		`{"data":[{"indexing_status":"completed"},{"indexing_status":"indexing"}]}`: {false, true},
		`{"data":[{"indexing_status":"completed"},{"indexing_status":"error"}]}`:    {true, true},
		`{"data":[{"indexing_status":"paused"}]}`:                                   {true, true},
		`{"data":[]}`:  {true, true},
		`{"code":"x"}`: {false, false},
		`[`:            {false, false},
	} {
		if over, ok := IndexingOver([]byte(answer)); over != want[0] || ok != want[1] {
			t.Errorf("%s: got %v, %v", answer, over, ok)
		}
	}
}
