import { useEffect, useRef } from 'preact/hooks'
import uPlot from 'uplot'
import { figureName, figureValue } from './figures'
import { useWords } from './i18n'
import type { Series, TimelineEvent } from './model'

// Lines differ by their dashes too, not only by colour.
const dashes: (number[] | undefined)[] = [undefined, [6, 3], [2, 3]]

interface Props {
  title: string
  series: Series
  names: string[]
  events: TimelineEvent[]
  /** Changes when the colours do. */
  theme: string
  bad?: string
}

/** Reads a colour of the style sheet, which knows the theme. */
function colour(name: string): string {
  const probe = document.body.appendChild(document.createElement('i'))
  probe.style.color = `var(${name})`
  const value = getComputedStyle(probe).color
  probe.remove()
  return value
}

export function Chart({ title, series, names, events, theme, bad }: Props) {
  const w = useWords()
  const box = useRef<HTMLDivElement>(null)
  const plot = useRef<uPlot | null>(null)
  const marks = useRef<TimelineEvent[]>([])
  marks.current = events
  const known = names.filter((n) => series.lines[n]?.some((v) => v !== null))
  const shape = known.join() + theme + w.lang

  useEffect(() => {
    const el = box.current
    if (!el || !known.length) return
    const palette = [colour('--line-1'), colour('--line-2'), colour('--line-3')]
    const text = colour('--muted')
    const axis = {
      stroke: text,
      font: '11px system-ui, sans-serif',
      grid: { stroke: colour('--grid'), width: 1 },
      ticks: { show: false },
    }
    const size = () => ({ width: Math.max(160, el.clientWidth), height: 150 })
    const time = new Intl.DateTimeFormat(w.lang === 'zh' ? 'zh-CN' : 'en-GB', { hour: '2-digit', minute: '2-digit' })
    const date = new Intl.DateTimeFormat(w.lang === 'zh' ? 'zh-CN' : 'en-GB', { month: 'short', day: 'numeric' })
    const u = new uPlot(
      {
        ...size(),
        legend: { show: false },
        cursor: { y: false, drag: { x: false, y: false }, points: { size: 5 } },
        padding: [8, 4, 0, 0],
        scales: { y: { range: (_u, _min, max) => [0, max > 0 ? max * 1.1 : 1] } },
        axes: [
          { ...axis, size: 24, space: 60, values: (_u, at) => at.map((s) => (at.length > 1 && at[1]! - at[0]! >= 86400 ? date : time).format(s * 1000)) },
          { ...axis, size: 62, space: 32, values: (_u, at) => at.map((v) => figureValue(w, known[0]!, v)) },
        ],
        series: [
          {},
          ...known.map((name, i) => ({
            label: name,
            stroke: name === bad ? colour('--bad') : palette[i % palette.length],
            dash: dashes[i % dashes.length],
            width: 1.5,
            points: { show: false },
            spanGaps: false,
          })),
        ],
        hooks: { draw: [(p) => drawMarks(p, marks.current, colour('--act'), colour('--bad'))] },
      },
      [series.t, ...known.map((n) => series.lines[n]!)] as uPlot.AlignedData,
      el,
    )
    plot.current = u
    const watch = new ResizeObserver(() => u.setSize(size()))
    watch.observe(el)
    return () => {
      watch.disconnect()
      u.destroy()
      plot.current = null
    }
  }, [shape])

  useEffect(() => {
    if (known.length) plot.current?.setData([series.t, ...known.map((n) => series.lines[n]!)] as uPlot.AlignedData)
  }, [series, shape])
  useEffect(() => plot.current?.redraw(false), [events])

  const now = known.map((name) => {
    const v = series.lines[name]!.findLast((x) => x !== null)
    return { name: figureName(w, name), value: v == null ? '–' : figureValue(w, name, v), bad: name === bad }
  })
  const label = title + ': ' + now.map(({ name, value }) => w.t('chart.now', { name, value })).join(', ')
  return (
    <figure class="chart">
      <figcaption>
        <span class="chart-title">{title}</span>
        <span class="legend" aria-hidden="true">
          {now.map((n, i) => (
            <span key={n.name} class="legend-item">
              <svg width="18" height="6" class={n.bad ? 'l-bad' : 'l-' + ((i % 3) + 1)}>
                <line x1="0" x2="18" y1="3" y2="3" stroke-width="2" stroke-dasharray={dashes[i % dashes.length]?.join(' ')} />
              </svg>
              {n.name} <b>{n.value}</b>
            </span>
          ))}
        </span>
      </figcaption>
      {known.length ? (
        <div class="plot" role="img" aria-label={label} ref={box} />
      ) : (
        <p class="plot nothing">{w.t('chart.none')}</p>
      )}
    </figure>
  )
}

/** Upright lines where somebody gave an order or an alert began. */
function drawMarks(u: uPlot, events: TimelineEvent[], act: string, bad: string) {
  const { ctx, bbox } = u
  const { min, max } = u.scales['x'] ?? {}
  if (min == null || max == null) return
  ctx.save()
  ctx.lineWidth = devicePixelRatio
  for (const e of events) {
    const at = e.at / 1000
    if (at < min || at > max) continue
    if (e.kind !== 'action' && !(e.kind === 'alert' && e.to === 'firing')) continue
    const x = Math.round(u.valToPos(at, 'x', true))
    ctx.strokeStyle = ctx.fillStyle = e.kind === 'action' ? act : bad
    ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio])
    ctx.beginPath()
    ctx.moveTo(x, bbox.top)
    ctx.lineTo(x, bbox.top + bbox.height)
    ctx.stroke()
    const s = 3.5 * devicePixelRatio
    ctx.setLineDash([])
    ctx.beginPath()
    if (e.kind === 'action') {
      ctx.moveTo(x - s, bbox.top - s)
      ctx.lineTo(x + s, bbox.top - s)
      ctx.lineTo(x, bbox.top + s)
    } else {
      ctx.rect(x - s, bbox.top - s, 2 * s, 2 * s)
    }
    ctx.fill()
  }
  ctx.restore()
}
