package cli

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"

	"fournines/local"
	"fournines/topology"
)

// maxListLines bounds the live checklist.
const maxListLines = 40

// checklist shows how a stack starts: on a terminal a block that is redrawn,
// elsewhere one line for each component that gets ready or fails.
type checklist struct {
	out    io.Writer
	began  time.Time
	rows   []*listRow
	byName map[string]*listRow
	synced bool
	closed bool

	terminal      bool
	color         bool
	width, height int
	drawn         int // lines on the screen
	lastDraw      time.Time
}

type listRow struct {
	zone string
	c    topology.Component
	took time.Duration // until it was ready; 0 when it is not
}

func newChecklist(out io.Writer) *checklist {
	l := &checklist{out: out, began: time.Now(), byName: map[string]*listRow{}, width: 100, height: maxListLines}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		l.terminal = true
		l.color = os.Getenv("NO_COLOR") == ""
		if w, h, err := term.GetSize(int(f.Fd())); err == nil && w > 20 && h > 5 {
			l.width, l.height = w, min(h-1, maxListLines)
		}
	}
	return l
}

// redrawPause keeps a busy start from flooding a slow terminal.
const redrawPause = 50 * time.Millisecond

func (l *checklist) show(e local.Event) {
	changed := false
	if c := e.Component; c != nil {
		row := l.byName[c.Name]
		if row == nil {
			row = &listRow{zone: e.Zone}
			l.byName[c.Name] = row
			l.rows = append(l.rows, row)
		}
		changed = row.c.State != c.State
		if c.State == topology.Ready && row.c.State != topology.Ready {
			row.took = time.Since(l.began)
		}
		row.c = *c
	}
	l.synced = l.synced || e.Synced
	switch {
	case !l.synced:
	case !l.terminal:
		if e.Synced {
			l.plainHead()
		} else if changed {
			l.plainLine(l.byName[e.Component.Name])
		}
	case time.Since(l.lastDraw) >= redrawPause || e.StartSeconds > 0:
		l.draw()
	}
}

func (l *checklist) plainHead() {
	ready := 0
	for _, r := range l.rows {
		if r.c.State == topology.Ready {
			ready++
		}
	}
	fmt.Fprintf(l.out, "Starting %d components (%d ready).\n", len(l.rows), ready)
}

func (l *checklist) plainLine(r *listRow) {
	if r.c.State == topology.Starting {
		return
	}
	line := fmt.Sprintf("%6.1fs  %-9s %s", time.Since(l.began).Seconds(), r.c.State, r.c.Name)
	if r.zone != "" {
		line += " (zone " + r.zone + ")"
	}
	if r.c.State != topology.Ready && r.c.Reason != "" {
		line += ": " + r.c.Reason
	}
	fmt.Fprintln(l.out, line)
}

func (l *checklist) draw() {
	l.lastDraw = time.Now()
	lines := l.lines(false)
	if len(lines) > l.height {
		lines = l.lines(true)
	}
	if len(lines) > l.height {
		more := len(lines) - l.height + 1
		lines = append(lines[:l.height-1], fmt.Sprintf("  … and %d more", more))
	}
	var b strings.Builder
	if l.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", l.drawn)
	}
	b.WriteString("\r\x1b[J")
	for _, line := range lines {
		b.WriteString(line + "\n")
	}
	_, _ = io.WriteString(l.out, b.String())
	l.drawn = len(lines)
}

// lines renders the block; short puts what is ready into one line per zone.
func (l *checklist) lines(short bool) []string {
	var zones []string
	for _, r := range l.rows {
		if !slices.Contains(zones, r.zone) {
			zones = append(zones, r.zone)
		}
	}
	slices.Sort(zones)
	var out []string
	for _, z := range zones {
		title := "zone " + z
		if z == "" {
			title = "outside the zones"
		}
		var rows []string
		ready, all := 0, 0
		for _, r := range l.rows {
			if r.zone != z {
				continue
			}
			all++
			if r.c.State == topology.Ready {
				ready++
				if short {
					continue
				}
			}
			rows = append(rows, l.row(r))
		}
		out = append(out, fmt.Sprintf("%s  %d of %d ready", title, ready, all))
		out = append(out, rows...)
	}
	return out
}

func (l *checklist) row(r *listRow) string {
	state := fmt.Sprintf("%-8s", r.c.State)
	tail := r.c.Reason
	if r.c.State == topology.Ready {
		tail = fmt.Sprintf("%.1fs", r.took.Seconds())
		if r.c.Role != "" {
			tail += "  " + r.c.Role
		}
	}
	text := fmt.Sprintf("%-22s %s", r.c.Name, strings.ReplaceAll(tail, "\n", " "))
	// A line that wraps would break the redrawing.
	if room := l.width - len(state) - 4; len([]rune(text)) > room {
		text = string([]rune(text)[:room-1]) + "…"
	}
	if l.color {
		code := "33"
		switch r.c.State {
		case topology.Ready:
			code = "32"
		case topology.Failed:
			code = "31"
		}
		state = "\x1b[" + code + "m" + state + "\x1b[0m"
	}
	return "  " + state + " " + text
}

// close draws the last state.
func (l *checklist) close() {
	if !l.closed && l.terminal && l.synced {
		l.draw()
	}
	l.closed = true
}

// firstUnready is the component that keeps the stack from being ready: one
// that has failed, else one that waits for no other.
func (l *checklist) firstUnready() *topology.Component {
	var first *topology.Component
	for _, r := range l.rows {
		c := &r.c
		switch {
		case c.State == topology.Failed:
			return c
		case c.State == topology.Ready || c.State == topology.Stopped:
		case first == nil || strings.HasPrefix(first.Reason, "waits for"):
			first = c
		}
	}
	return first
}
