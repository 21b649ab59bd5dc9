package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"fournines/gateway"
	"fournines/gateway/cache"
)

// gatewayCacheCommand looks at the cache of retrievals of a running gateway.
func (a *app) gatewayCacheCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cache",
		Short: "Look at a gateway's cache of retrievals, and purge it",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var stats, top, purge gatewayClient
	var n int
	topCmd := top.flags(&cobra.Command{
		Use:   "top",
		Short: "Show the entries with the most hits",
		Long: `Show the entries with the most hits since they were stored, at one gateway.

KEY are the first digits of the hash of API key and question: the cache does not
keep what was asked. STATE is fresh, expired (given only while the instances
fail) or void (a write has been seen).`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.gatewayCall(cmd.Context(), &top, http.MethodGet, "/v1/cache/top?n="+strconv.Itoa(n), cacheTopTable)
		},
	})
	topCmd.Flags().IntVarP(&n, "number", "n", 20, "how many, 1 to 10000")
	var dataset, appID string
	var all bool
	purgeCmd := purge.flags(&cobra.Command{
		Use:   "purge",
		Short: "Drop the entries of a data set, of an app, or all",
		Long: `Drop the entries of a data set, of an app, or all.

One gateway is asked; those that share its Redis drop theirs within
cache.maxStaleness. What the data sets hold is not touched.`,
		Example: `  fournines gateway cache purge --dataset 3fa85f64-5717-4562-b3fc-2c963f66afa6
  fournines gateway cache purge --app support-bot
  fournines gateway cache purge --all`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := url.Values{}
			given := 0
			for _, f := range []struct{ name, value string }{{"dataset", dataset}, {"app", appID}} {
				if f.value != "" {
					q.Set(f.name, f.value)
					given++
				}
			}
			if all {
				q.Set("all", "true")
				given++
			}
			if given != 1 {
				return &exitError{code: 2, err: errors.New("give one of --dataset, --app and --all")}
			}
			return a.gatewayCall(cmd.Context(), &purge, http.MethodPost, "/v1/cache/purge?"+q.Encode(), cachePurgeTable)
		},
	})
	f := purgeCmd.Flags()
	f.StringVar(&dataset, "dataset", "", "id of the data set")
	f.StringVar(&appID, "app", "", "name of the app, or the id of its key")
	f.BoolVar(&all, "all", false, "everything")
	cmd.AddCommand(stats.flags(&cobra.Command{
		Use: "stats", Short: "Show how the cache does", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.gatewayCall(cmd.Context(), &stats, http.MethodGet, "/v1/cache", cacheStatsTable)
		},
	}), topCmd, purgeCmd)
	return cmd
}

func cacheStatsTable(w io.Writer, body []byte) error {
	var s gateway.CacheStats
	if err := json.Unmarshal(body, &s); err != nil {
		return fmt.Errorf("answer of the gateway: %w", err)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(tw, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	switch {
	case !s.Enabled:
		line("state", "off (cache.enabled)")
	case s.Alone:
		line("state", "on, without Redis: writes at other gateways go unnoticed until cache.ttl")
	default:
		line("state", "on")
	}
	line("memory", "%.1f of %.1f MiB, %d entries, %d evicted", float64(s.Bytes)/(1<<20), float64(s.MaxBytes)/(1<<20), s.Entries, s.Evictions)
	line("hit rate", "%.3f", s.HitRate)
	for _, r := range []cache.Result{cache.Hit, cache.Shared, cache.Miss, cache.Stale, cache.Bypass, cache.Absent} {
		line(string(r), "%d", s.Results[r])
	}
	if s.Pending > 0 {
		line("not told to Redis", "%d invalidations", s.Pending)
	}
	return tw.Flush()
}

func cacheTopTable(w io.Writer, body []byte) error {
	return table(w, body, "KEY\tDATA SET\tAPP\tHITS\tBYTES\tAGE\tSTATE", func(tw io.Writer, t cache.Top) {
		age := time.Duration(t.AgeSeconds * float64(time.Second)).Round(time.Second)
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%d\t%v\t%s\n", t.Key, t.Dataset, t.App, t.Hits, t.Bytes, age, t.State)
	})
}

func cachePurgeTable(w io.Writer, body []byte) error {
	var p cache.Purged
	if err := json.Unmarshal(body, &p); err != nil {
		return fmt.Errorf("answer of the gateway: %w", err)
	}
	where := "; the other gateways do it within cache.maxStaleness"
	if !p.Shared {
		where = "; Redis was not told: the other gateways go on"
	}
	_, err := fmt.Fprintf(w, "%d entries dropped here%s\n", p.Entries, where)
	return err
}
