import { budgetTime, duration, latency, percent, short } from '../format'
import { useWords, type Words } from '../i18n'
import { placed, type Snapshot, type State } from '../model'
import { Alerts, Events, Panel, Tile } from '../parts'
import { StateIcon } from '../icons'
import { Budget } from './budget'
import { OverviewCharts } from './charts'
import { DataPanel } from './data'
import { ZoneMap } from './map'

/** From this share of failing requests on, users notice. */
const failingFrom = 0.001

/** The one sentence that everything on the page comes down to. */
export function verdict(w: Words, s: Snapshot): { state: State; text: string } {
  const all = placed(s)
  const n = all.filter((p) => p.component.state !== 'ready').length
  const parts = { n, all: all.length }
  const { rps, failed } = s.totals
  if (!all.length && s.stack.state === 'stopped') return { state: 'stopped', text: w.t(s.sources.stack.at ? 'verdict.stopped' : 'verdict.unknown') }
  if (rps && failed && failed / rps >= failingFrom) {
    return { state: 'failed', text: w.t('verdict.failing', { share: percent(w.lang, failed / rps, 1) }) }
  }
  if (s.stack.state === 'starting') return { state: 'starting', text: w.t('verdict.starting', parts) }
  if (rps === undefined) return { state: n ? 'degraded' : 'starting', text: w.t('verdict.unknown') }
  if (n) return { state: 'degraded', text: w.t('verdict.part', parts) }
  return { state: 'ready', text: w.t(rps > 0 ? 'verdict.good' : 'verdict.quiet') }
}

export function Overview({ s, theme }: { s: Snapshot; theme: string }) {
  const w = useWords()
  return (
    <>
      <Tiles s={s} />
      <ZoneMap s={s} />
      <OverviewCharts events={s.events} theme={theme} />
      <div class="columns">
        <Budget s={s} />
        <DataPanel s={s} />
        <div class="stacked">
          <Panel id="alerts" title={w.t('alerts')}>
            <Alerts alerts={s.alerts} now={s.at} />
          </Panel>
          <Panel id="events" title={w.t('events')} aside={<a href="#/timeline">{w.t('events.all')}</a>}>
            {s.events.length ? <Events events={s.events.slice(0, 8)} /> : <p class="muted">{w.t('events.none')}</p>}
          </Panel>
        </div>
      </div>
      <Endpoints s={s} />
    </>
  )
}

function Tiles({ s }: { s: Snapshot }) {
  const w = useWords()
  const f = s.totals
  const text = (name: string, write: (v: number) => string): string => (f[name] === undefined ? '–' : write(f[name]!))
  const n = (v: number) => short(w.lang, v)
  const rps = f['rps'] ?? 0
  const failed = f['failed'] ?? 0
  const whole = s.slo.windowSeconds * (1 - s.slo.objective)
  const hour = s.slo.burn.find((b) => b.window === '1h')
  const fast = !!hour && hour.factor !== null && hour.factor > hour.alert
  return (
    <dl class="tiles">
      <Tile label={w.t('tile.rps')} value={text('rps', n)} unit={w.t('tile.perSecond')} note={f['limited'] === undefined ? undefined : w.t('tile.refused', { n: n(f['limited']) })} />
      <Tile
        label={w.t('tile.failed')}
        value={f['rps'] === undefined ? '–' : percent(w.lang, rps ? failed / rps : 0, 2)}
        note={text('failed', (v) => `${n(v)} ${w.t('f.failed')}`)}
        tone={rps && failed / rps >= failingFrom ? 'bad' : ''}
      />
      <Tile label={w.t('tile.p99')} value={text('p99', (v) => latency(w.lang, v))} note={f['p50'] === undefined ? undefined : w.t('tile.p50', { n: latency(w.lang, f['p50']) })} />
      <Tile label={w.t('tile.inFlight')} value={text('inFlight', n)} note={w.t('tile.waiting', { n: text('waiting', n), m: text('streams', n) })} />
      <Tile
        label={w.t('tile.budget')}
        value={s.slo.left === null ? '–' : percent(w.lang, s.slo.left, 1)}
        note={s.slo.left === null ? w.t('tile.noRequests') : w.t('tile.of', { n: budgetTime(w.lang, s.slo.left * whole), m: budgetTime(w.lang, whole), w: duration(w.lang, s.slo.windowSeconds) })}
        tone={s.slo.left !== null && s.slo.left < 0 ? 'bad' : s.slo.left !== null && s.slo.left < 0.25 ? 'warn' : ''}
      />
      <Tile
        label={w.t('tile.burn')}
        value={hour?.factor == null ? '–' : short(w.lang, hour.factor) + ' ×'}
        note={hour?.factor == null ? w.t('tile.noRequests') : hour.factor > 0 ? w.t('tile.lasts', { n: duration(w.lang, (Math.max(0, s.slo.left ?? 1) * s.slo.windowSeconds) / hour.factor) }) : w.t('tile.steady')}
        tone={fast ? 'bad' : ''}
      />
    </dl>
  )
}

function Endpoints({ s }: { s: Snapshot }) {
  const w = useWords()
  const list = Object.entries(s.stack.endpoints)
  if (!list.length) return null
  return (
    <Panel id="endpoints" title={w.t('endpoints')} aside={s.stack.startSeconds ? <span class="muted">{w.t('foot.start', { n: duration(w.lang, s.stack.startSeconds) })}</span> : null}>
      <dl class="facts endpoints">
        {list.map(([name, url]) => (
          <div class="fact" key={name}>
            <dt>{name}</dt>
            <dd>
              <code>{url}</code>
            </dd>
          </div>
        ))}
      </dl>
    </Panel>
  )
}

export function Verdict({ s }: { s: Snapshot }) {
  const w = useWords()
  const v = verdict(w, s)
  return (
    <div class={'verdict s-' + v.state}>
      <StateIcon state={v.state} /> <span role="status">{v.text}</span>
    </div>
  )
}
