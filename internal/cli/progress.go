package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"fournines/backup"
)

// progressLine shows how far a long operation is: on a terminal one line that is
// redrawn with a bar, elsewhere one line for each phase and each quarter of it.
type progressLine struct {
	mu       sync.Mutex
	out      io.Writer
	began    time.Time
	terminal bool
	phase    string
	quarter  int
	lastDraw time.Time
	drawn    bool
}

func newProgressLine(out io.Writer) *progressLine {
	p := &progressLine{out: out, began: time.Now()}
	if f, ok := out.(*os.File); ok {
		p.terminal = term.IsTerminal(int(f.Fd()))
	}
	return p
}

// barWidth is the length of the bar in characters.
const barWidth = 30

func (p *progressLine) show(now backup.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fresh := now.Phase != p.phase
	if fresh {
		p.phase, p.quarter = now.Phase, 0
	}
	done := min(max(now.Percent, 0), 100)
	if p.terminal {
		if !fresh && done < 100 && time.Since(p.lastDraw) < redrawPause {
			return
		}
		p.lastDraw, p.drawn = time.Now(), true
		text := now.Phase
		if now.Percent >= 0 {
			full := int(done / 100 * barWidth)
			text = fmt.Sprintf("%-16s [%s%s] %5.1f%%", now.Phase, strings.Repeat("#", full), strings.Repeat(".", barWidth-full), done)
		}
		fmt.Fprintf(p.out, "\r\x1b[K%6.1fs  %s", time.Since(p.began).Seconds(), text)
		return
	}
	quarter := int(done / 25)
	if !fresh && quarter <= p.quarter {
		return
	}
	p.quarter = quarter
	text := now.Phase
	if now.Percent >= 0 {
		text = fmt.Sprintf("%s: %.0f%%", now.Phase, done)
	}
	fmt.Fprintf(p.out, "%6.1fs  %s\n", time.Since(p.began).Seconds(), text)
}

// end leaves the last line as it is and goes to the next.
func (p *progressLine) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.drawn {
		fmt.Fprintln(p.out)
	}
}
