package main

import (
	"fmt"
	"math"
	"strings"
)

// drawRamps draws goodput and the 99% quantile of the first content against the
// offered load, with protection and without.
func drawRamps(capacity float64, ours, bare []level) string {
	var b strings.Builder
	const width, height, left, top, plotW, plotH, gap = 900, 400, 64, 70, 350, 250, 86
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="Helvetica,Arial,sans-serif" font-size="13" fill="#222">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<text x="%d" y="28" font-size="17" font-weight="bold">Offered 1 to 10 times the capacity of the instances (%.0f chats/s)</text>`+"\n", left, capacity)
	most := 1.0
	for _, l := range ours {
		most = max(most, l.load)
	}
	panel := func(x0 int, title, unit string, topValue, step float64, value func(level) float64, mark float64, markName string) {
		px := func(load float64) float64 { return float64(x0) + load/most*plotW }
		py := func(v float64) float64 { return float64(top) + plotH*(1-min(v, topValue)/topValue) }
		fmt.Fprintf(&b, `<text x="%d" y="%d" font-weight="bold">%s</text>`+"\n", x0, top-14, title)
		for v := 0.0; v <= topValue+1e-9; v += step {
			fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#e4e4e4"/><text x="%d" y="%.1f" text-anchor="end" fill="#555">%g</text>`+"\n",
				x0, x0+plotW, py(v), py(v), x0-8, py(v)+4, v)
		}
		for _, l := range ours {
			if l.load != math.Trunc(l.load) {
				continue
			}
			fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle" fill="#555">%gx</text>`+"\n", px(l.load), top+plotH+18, l.load)
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle" fill="#555">offered load</text>`+"\n", x0+plotW/2, top+plotH+36)
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end" fill="#555">%s</text>`+"\n", x0+plotW, top-14, unit)
		if mark > 0 {
			fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#999" stroke-dasharray="5 4"/><text x="%d" y="%.1f" text-anchor="end" fill="#777" font-size="12">%s</text>`+"\n",
				x0, x0+plotW, py(mark), py(mark), x0+plotW, py(mark)-5, markName)
		}
		line := func(levels []level, colour, dash string) {
			var points []string
			for _, l := range levels {
				points = append(points, fmt.Sprintf("%.1f,%.1f", px(l.load), py(value(l))))
			}
			fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2.5"%s/>`+"\n", strings.Join(points, " "), colour, dash)
			for _, l := range levels {
				fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"/>`+"\n", px(l.load), py(value(l)), colour)
			}
		}
		line(bare, "#c0392b", "")
		line(ours, "#1f6fb2", "")
	}
	scale := math.Ceil(capacity*1.1/10) * 10
	panel(left, "Goodput", "chats per second, in time and complete", scale, scale/5, func(l level) float64 { return l.goodput() }, capacity, "capacity")
	panel(left+plotW+gap, "First content of admitted chats, p99", "seconds", 10, 2, func(l level) float64 { return l.content.ms(.99) / 1000 }, inTime.Seconds(), "in time")
	y := top + plotH + 62
	fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%d" y2="%d" stroke="#1f6fb2" stroke-width="2.5"/><text x="%d" y="%d">with overload protection (default settings)</text>`+"\n", left, left+28, y-4, y-4, left+36, y)
	fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%d" y2="%d" stroke="#c0392b" stroke-width="2.5"/><text x="%d" y="%d">without; clients give up after %.0f s</text>`+"\n", left+plotW+gap, left+plotW+gap+28, y-4, y-4, left+plotW+gap+36, y, patience.Seconds())
	b.WriteString("</svg>\n")
	return b.String()
}
