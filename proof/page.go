package proof

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"strings"

	"fournines/availability"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"minutes": minutes,
	"percent": availability.Percent,
	"share":   func(v float64) string { return fmt.Sprintf("%.0f%%", v*100) },
	"seconds": seconds,
	"rate":    func(v float64) string { return fmt.Sprintf("%.2g", v) },
	"number":  func(v float64) string { return fmt.Sprintf("%g", v) },
	"money":   func(v float64) string { return fmt.Sprintf("%.0f", v) },
	"join":    func(list []string) string { return strings.Join(list, ", ") },
	"first":   func(n int, list []availability.Swing) []availability.Swing { return list[:min(n, len(list))] },
	"word":    func(v availability.Verdict) string { return strings.ReplaceAll(string(v), " ", "-") },
	"kind":    func(k availability.Known) string { return strings.ReplaceAll(string(k), " ", "-") },
	// scale places minutes on an axis of logarithms from 0.1 to 10000, in percent.
	"scale": scale,
	// wide is a bar's width in percent of the widest.
	"wide": func(v, most float64) string {
		if most <= 0 {
			return "0%"
		}
		return fmt.Sprintf("%.2f%%", math.Min(100, 100*v/most))
	},
	"width": func(from, to float64) string { return fmt.Sprintf("%.2f", math.Max(0.5, position(to)-position(from))) },
	"mostYears": func(bins []availability.Bin) float64 {
		most := 0
		for _, b := range bins {
			most = max(most, b.Years)
		}
		return float64(most)
	},
	"float": func(n int) float64 { return float64(n) },
	"costliest": func(all []availability.Contribution) float64 {
		most := 0.0
		for _, c := range all {
			if !c.Outside {
				most = max(most, c.Minutes.Mean)
			}
		}
		return most
	},
}).Parse(pageText))

// seconds writes seconds with as many digits as they deserve.
func seconds(v float64) string {
	if v >= 100 {
		return fmt.Sprintf("%.0f s", v)
	}
	return fmt.Sprintf("%.2f s", v)
}

func position(minutes float64) float64 {
	return 100 * (math.Log10(math.Min(10000, math.Max(0.1, minutes))) + 1) / 5
}

func scale(minutes float64) string { return fmt.Sprintf("%.2f", position(minutes)) }

// WriteHTML writes a report as one page that needs nothing else: no script, no
// file beside it, no network.
func WriteHTML(w io.Writer, r *Report) error { return page.Execute(w, r) }
