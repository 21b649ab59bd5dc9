import { figureRows } from '../figures'
import { bytes } from '../format'
import { StateIcon } from '../icons'
import { useWords } from '../i18n'
import { placed, type Snapshot, type TimelineEvent } from '../model'
import { Alerts, appLink, Events, Panel } from '../parts'
import { usePoll } from '../feed'
import { SubjectCharts } from './charts'

/** Everything about one component. */
export function ComponentPage({ s, name, theme }: { s: Snapshot; name: string; theme: string }) {
  const w = useWords()
  const found = placed(s).find((p) => p.component.name === name)
  const { data } = usePoll<TimelineEvent[]>('/api/events', 15)
  if (!found) return <p class="problem">{w.t('component.gone')}</p>
  const { component: c, zone } = found
  const mine = (data ?? s.events).filter((e) => e.component === name || (!e.component && e.zone === zone && zone !== ''))
  const alerts = s.alerts.filter((a) => a.component === name)
  const facts: [string, string][] = [
    [w.t('f.kind'), w.maybe('kind.' + c.kind, c.kind)],
    [w.t('f.zone'), zone || w.t('map.outside')],
    ...(c.role ? ([[w.t('f.role'), w.maybe('role.' + c.role, c.role)]] as [string, string][]) : []),
    ...(c.address ? ([[w.t('f.address'), c.address]] as [string, string][]) : []),
    ...(c.pid ? ([[w.t('f.pid'), String(c.pid)]] as [string, string][]) : []),
    ...(c.memoryBytes ? ([[w.t('f.memory'), bytes(w.lang, c.memoryBytes)]] as [string, string][]) : []),
    [w.t('f.restarts'), String(c.restarts)],
    ...figureRows(w, c.figures).map((f) => [f.label, f.value] as [string, string]),
  ]
  return (
    <>
      <div class={'verdict s-' + c.state}>
        <StateIcon state={c.state} silent /> {w.t(`state.${c.state}`)}
        {c.reason ? <span class="reason">{c.reason}</span> : null}
      </div>
      <div class="columns two">
        <Panel id="facts" title={c.name}>
          <dl class="facts">
            {facts.map(([label, value]) => (
              <div class="fact" key={label}>
                <dt>{label}</dt>
                <dd>{value}</dd>
              </div>
            ))}
          </dl>
        </Panel>
        <div class="stacked">
          {alerts.length ? (
            <Panel id="alerts" title={w.t('alerts')}>
              <Alerts alerts={alerts} now={s.at} />
            </Panel>
          ) : null}
          <Panel id="events" title={w.t('events')}>
            {mine.length ? <Events events={mine.slice(0, 20)} days /> : <p class="muted">{w.t('events.none')}</p>}
          </Panel>
        </div>
      </div>
      <SubjectCharts query={'component=' + encodeURIComponent(name)} events={mine} theme={theme} />
    </>
  )
}

const appColumns = ['rps', 'inFlight', 'queued', 'shed', 'yields']

export function AppsPage({ s }: { s: Snapshot }) {
  const w = useWords()
  const value = (figures: Record<string, number>, name: string) => figureRows(w, { [name]: figures[name] ?? 0 })[0]!
  return (
    <>
      <Panel id="apps" title={w.t('apps')}>
        <p class="muted">{w.t('apps.text')}</p>
        {s.apps.length ? (
          <FigureTable head={w.t('app')} columns={appColumns} rows={s.apps} link={appLink} value={value} />
        ) : (
          <p class="muted">{w.t('apps.none')}</p>
        )}
      </Panel>
      {s.limits.length ? (
        <Panel id="limits" title={w.t('limits')}>
          <FigureTable head={w.t('limits.name')} columns={['admitted', 'limited']} rows={s.limits} value={value} />
        </Panel>
      ) : null}
    </>
  )
}

function FigureTable(props: {
  head: string
  columns: string[]
  rows: { name: string; figures: Record<string, number> }[]
  link?: (name: string) => string
  value: (figures: Record<string, number>, name: string) => { label: string; value: string }
}) {
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label={props.head}>
      <table class="plain">
        <thead>
          <tr>
            <th scope="col">{props.head}</th>
            {props.columns.map((c) => (
              <th scope="col" class="num" key={c}>
                {props.value({}, c).label}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {props.rows.map((r) => (
            <tr key={r.name}>
              <th scope="row">{props.link ? <a href={props.link(r.name)}>{r.name}</a> : r.name}</th>
              {props.columns.map((c) => (
                <td class="num" key={c}>
                  {props.value(r.figures, c).value}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  )
}

export function AppPage({ s, name, theme }: { s: Snapshot; name: string; theme: string }) {
  const w = useWords()
  const app = s.apps.find((a) => a.name === name)
  if (!app) return <p class="problem">{w.t('app.gone')}</p>
  return (
    <>
      <Panel id="facts" title={name}>
        <dl class="facts">
          {figureRows(w, app.figures).map((f) => (
            <div class="fact" key={f.name}>
              <dt>{f.label}</dt>
              <dd>{f.value}</dd>
            </div>
          ))}
        </dl>
      </Panel>
      <SubjectCharts query={'app=' + encodeURIComponent(name)} events={s.events} theme={theme} />
    </>
  )
}
