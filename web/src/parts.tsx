import type { ComponentChildren } from 'preact'
import { eventText, eventTone } from './events'
import { figureText, besideOf } from './figures'
import { clock, day, duration } from './format'
import { EventIcon, StateIcon } from './icons'
import { useWords } from './i18n'
import type { Alert, Component, TimelineEvent } from './model'

export const componentLink = (name: string): string => '#/component/' + encodeURIComponent(name)
export const appLink = (name: string): string => '#/app/' + encodeURIComponent(name)

export function Panel(props: { id: string; title: string; aside?: ComponentChildren; children: ComponentChildren; class?: string }) {
  return (
    <section class={'panel ' + (props.class ?? '')} aria-labelledby={props.id}>
      <header class="panel-head">
        <h2 id={props.id}>{props.title}</h2>
        {props.aside}
      </header>
      {props.children}
    </section>
  )
}

export function Tile(props: { label: string; value: string; unit?: string; note?: string; tone?: 'bad' | 'warn' | '' }) {
  return (
    <div class={'tile ' + (props.tone ?? '')}>
      <dt>{props.label}</dt>
      <dd>
        <span class="tile-value">
          {props.value}
          {props.unit ? <small> {props.unit}</small> : null}
        </span>
        <span class="tile-note">{props.note ?? ' '}</span>
      </dd>
    </div>
  )
}

/** A component on the map. */
export function Chip({ c }: { c: Component }) {
  const w = useWords()
  return (
    <a class={'chip s-' + c.state} href={componentLink(c.name)} title={c.reason || undefined}>
      <span class="chip-name">
        <StateIcon state={c.state} /> {c.name}
        {c.role ? <span class={'role r-' + c.role.replace(' ', '-')}>{w.maybe('role.' + c.role, c.role)}</span> : null}
      </span>
      <span class="chip-figures">
        {c.state === 'ready' ? besideOf(c).map((n) => <span key={n}>{figureText(w, n, c.figures[n]!)}</span>) : <span>{w.t(`state.${c.state}`)}</span>}
      </span>
    </a>
  )
}

export function Events({ events, days }: { events: TimelineEvent[]; days?: boolean }) {
  const w = useWords()
  let last = ''
  return (
    <ol class="events">
      {events.map((e) => {
        const today = day(w.lang, e.at)
        const heading = days && today !== last ? today : ''
        last = today
        const subject = e.component
        return (
          <li key={e.id} class={'event e-' + eventTone(e)}>
            {heading ? <div class="event-day">{heading}</div> : null}
            <div class="event-line">
              <time dateTime={new Date(e.at).toISOString()}>{clock(w.lang, e.at)}</time>
              <span class="event-kind">
                <EventIcon kind={e.kind} />
                <span class="away">{w.t(`event.kind.${e.kind}`)}</span>
              </span>
              <span class="event-text">
                {subject ? <a href={componentLink(subject)}>{eventText(w, e)}</a> : eventText(w, e)}
                {e.kind === 'state' && e.text ? <span class="event-more">{e.text}</span> : null}
              </span>
            </div>
          </li>
        )
      })}
    </ol>
  )
}

const urgent = (severity: string): 'bad' | 'warn' | 'plain' =>
  severity === 'critical' || severity === 'page' ? 'bad' : severity === 'warning' || severity === 'ticket' ? 'warn' : 'plain'

export function Alerts({ alerts, now }: { alerts: Alert[]; now: number }) {
  const w = useWords()
  if (!alerts.length)
    return (
      <p class="calm">
        <StateIcon state="ready" silent /> {w.t('alerts.none')}
      </p>
    )
  return (
    <ul class="alerts">
      {alerts.map((a) => (
        <li key={a.id} class={'alert a-' + urgent(a.severity)}>
          <div class="alert-head">
            <StateIcon state={urgent(a.severity) === 'bad' ? 'failed' : 'degraded'} silent />
            <b>{a.name}</b>
            <span class="role">{w.maybe('severity.' + a.severity, a.severity)}</span>
            {a.muted ? <span class="role">{w.t('alerts.muted')}</span> : null}
          </div>
          <p>{a.summary}</p>
          <p class="muted">
            {a.component ? (
              <>
                <a href={componentLink(a.component)}>{a.component}</a> ·{' '}
              </>
            ) : null}
            {w.t('alerts.since', { t: clock(w.lang, a.since), n: duration(w.lang, (now - a.since) / 1000) })}
          </p>
        </li>
      ))}
    </ul>
  )
}

/** A choice of a few. */
export function Choice<T extends string>(props: { label: string; value: T; of: readonly { value: T; text: string }[]; onChange: (v: T) => void }) {
  return (
    <label class="choice">
      <span class="away">{props.label}</span>
      <select value={props.value} aria-label={props.label} onChange={(e) => props.onChange(e.currentTarget.value as T)}>
        {props.of.map((o) => (
          <option key={o.value} value={o.value}>
            {o.text}
          </option>
        ))}
      </select>
    </label>
  )
}
