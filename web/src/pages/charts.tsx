import { useState } from 'preact/hooks'
import { Chart } from '../chart'
import { usePoll } from '../feed'
import { figureName } from '../figures'
import { useWords, type Key } from '../i18n'
import type { Series, TimelineEvent } from '../model'
import { Choice, Panel } from '../parts'

const ranges = ['15m', '1h', '6h', '24h', '7d'] as const
type Range = (typeof ranges)[number]

function useRange(): [Range, (r: Range) => void] {
  const [range, set] = useState<Range>(() => {
    const kept = sessionStorage.getItem('fournines.range')
    return ranges.find((r) => r === kept) ?? '1h'
  })
  return [
    range,
    (r) => {
      sessionStorage.setItem('fournines.range', r)
      set(r)
    },
  ]
}

function RangeChoice({ range, set }: { range: Range; set: (r: Range) => void }) {
  const { t } = useWords()
  return <Choice label={t('range')} value={range} of={ranges.map((r) => ({ value: r, text: r }))} onChange={set} />
}

const overview: { title: Key; names: string[]; bad?: string }[] = [
  { title: 'chart.requests', names: ['ok', 'refused', 'failed'], bad: 'failed' },
  { title: 'chart.latency', names: ['p50', 'p99'] },
  { title: 'chart.load', names: ['inFlight', 'waiting', 'jobsQueued'] },
  { title: 'chart.database', names: ['queries'] },
  { title: 'chart.lag', names: ['lagBytes'] },
  { title: 'chart.redis', names: ['commands'] },
]
const cache: (typeof overview)[number] = { title: 'chart.cache', names: ['cacheHitRatio'] }

export function OverviewCharts({ events, theme }: { events: TimelineEvent[]; theme: string }) {
  const w = useWords()
  const [range, setRange] = useRange()
  const { data, error } = usePoll<Series>('/api/series?range=' + range, 10)
  const shown = data && 'cacheHitRatio' in data.lines ? [...overview, cache] : overview
  return (
    <Panel id="charts" title={w.t('charts')} aside={<RangeChoice range={range} set={setRange} />}>
      {error ? <p class="problem">{w.t('chart.error', { n: error })}</p> : null}
      <div class="charts">
        {data ? shown.map((c) => <Chart key={c.title} {...c} title={w.t(c.title)} series={data} events={events} theme={theme} />) : <p class="nothing tall">{error ? null : w.t('waiting')}</p>}
      </div>
    </Panel>
  )
}

/** One chart for each figure of a component or an app. */
export function SubjectCharts({ query, events, theme }: { query: string; events: TimelineEvent[]; theme: string }) {
  const w = useWords()
  const [range, setRange] = useRange()
  const { data, error } = usePoll<Series>(`/api/series?range=${range}&${query}`, 10)
  const names = Object.keys(data?.lines ?? {}).sort()
  return (
    <Panel id="charts" title={w.t('charts')} aside={<RangeChoice range={range} set={setRange} />}>
      {error ? <p class="problem">{w.t('chart.error', { n: error })}</p> : null}
      <div class="charts">
        {data && names.map((n) => <Chart key={n} title={figureName(w, n)} names={[n]} series={data} events={events} theme={theme} />)}
        {data && !names.length ? <p class="nothing tall">{w.t('chart.none')}</p> : null}
        {!data && !error ? <p class="nothing tall">{w.t('waiting')}</p> : null}
      </div>
    </Panel>
  )
}
