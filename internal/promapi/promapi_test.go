package promapi_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fournines/internal/promapi"
)

func TestQuery(t *testing.T) {
	var answer, asked string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.FormValue("query") + " at " + r.FormValue("time")
		_, _ = io.WriteString(w, answer)
	}))
	defer server.Close()
	c, err := promapi.New(server.URL + "/")
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		answer string
		want   []promapi.Sample
		err    string
	}{
		"vector": {
			answer: `{"status":"success","data":{"resultType":"vector","result":[{"metric":{"app":"shop"},"value":[1700000000.5,"0.25"]}]}}`,
			want:   []promapi.Sample{{Labels: map[string]string{"app": "shop"}, Value: 0.25}},
		},
		"nothing": {answer: `{"status":"success","data":{"resultType":"vector","result":[]}}`, want: []promapi.Sample{}},
		"scalar":  {answer: `{"status":"success","data":{"resultType":"scalar","result":[1,"3"]}}`, want: []promapi.Sample{{Value: 3}}},
		"refused": {answer: `{"status":"error","errorType":"bad_data","error":"parse error"}`, err: "parse error"},
		"matrix":  {answer: `{"status":"success","data":{"resultType":"matrix","result":[]}}`, err: "matrix"},
		"value":   {answer: `{"status":"success","data":{"resultType":"scalar","result":[1,2]}}`, err: "no text"},
		"page":    {answer: `<html>`, err: "no answer of a Prometheus"},
	} {
		answer = tt.answer
		got, err := c.Query(t.Context(), "up", time.Unix(1700000000, 5e8))
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: error %v does not say %q", name, err, tt.err)
			}
			continue
		}
		if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", name, err, diff)
		}
	}
	if asked != "up at 1700000000.500" {
		t.Errorf("asked for %q", asked)
	}
}

func TestNewRefusesWhatIsNoURL(t *testing.T) {
	for _, base := range []string{"", "127.0.0.1:9090", "ftp://host", "http://"} {
		if _, err := promapi.New(base); err == nil {
			t.Errorf("%q was taken for a URL", base)
		}
	}
}
