package gateway

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"fournines/gateway/cache"
)

// maxTop is how many entries GET /v1/cache/top lists at most.
const maxTop = 10_000

// cacheHandlers are the cache's paths of the admin API.
func (g *Gateway) cacheHandlers(handle func(func(*http.Request) (int, any)) http.Handler) map[string]http.Handler {
	return map[string]http.Handler{
		"GET /v1/cache": handle(func(*http.Request) (int, any) { return http.StatusOK, g.cache.Stats() }),
		"GET /v1/cache/top": handle(func(r *http.Request) (int, any) {
			n := 20
			if s := r.URL.Query().Get("n"); s != "" {
				var err error
				if n, err = strconv.Atoi(s); err != nil || n < 1 || n > maxTop {
					return http.StatusBadRequest, adminError{"bad_request", fmt.Sprintf("n: %q is not between 1 and %d", s, maxTop)}
				}
			}
			return http.StatusOK, g.cache.Top(n)
		}),
		"POST /v1/cache/purge": handle(func(r *http.Request) (int, any) {
			q := r.URL.Query()
			dataset, app := strings.ToLower(q.Get("dataset")), q.Get("app")
			switch {
			case dataset != "" && app != "":
				return http.StatusBadRequest, adminError{"bad_request", "dataset and app: give one of them, or all=true"}
			case dataset == "" && app == "" && q.Get("all") != "true":
				return http.StatusBadRequest, adminError{"bad_request", "what? Give dataset, app or all=true"}
			case len(dataset) > 64 || len(app) > 64 || strings.ContainsAny(dataset+app, "{} \r\n"):
				return http.StatusBadRequest, adminError{"bad_request", "dataset and app: not the id of a data set, nor the name of an app or the id of its key"}
			}
			return http.StatusOK, g.cache.Purge(r.Context(), dataset, app)
		}),
	}
}

// CacheStats is the answer of GET /v1/cache.
type CacheStats = cache.Stats
