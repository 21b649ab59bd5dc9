import type { Words } from './i18n'
import type { EventKind, TimelineEvent } from './model'

export const filters = ['all', 'action', 'state', 'role', 'alert'] as const
export type Filter = (typeof filters)[number]

const groups: Record<Exclude<Filter, 'all'>, EventKind[]> = {
  action: ['action', 'zone'],
  state: ['state', 'restart', 'stack'],
  role: ['role'],
  alert: ['alert'],
}

export const passes = (e: TimelineEvent, f: Filter): boolean => f === 'all' || groups[f].includes(e.kind)

/** One line for an event. */
export function eventText(w: Words, e: TimelineEvent): string {
  const state = (s = '') => w.maybe('state.' + s, s)
  const role = (s = '') => w.maybe('role.' + s, s)
  const who = e.component ?? (e.zone ? w.t('zone.name', { n: e.zone }) : '')
  switch (e.kind) {
    case 'stack':
      return w.t('event.stack', { from: state(e.from), to: state(e.to) })
    case 'state':
      return w.t('event.state', { who, from: state(e.from), to: state(e.to) })
    case 'role':
      return w.t('event.role', { who, from: role(e.from), to: role(e.to) })
    case 'restart':
      return w.t('event.restart', { who })
    case 'zone':
      return w.t(e.text === 'power' ? 'event.power' : 'event.link', { zone: e.zone ?? '', to: w.maybe(e.to ?? '', e.to ?? '') })
    case 'action':
      return w.maybe('event.action.' + e.to, `${e.to} ${who}`, { who })
    case 'alert':
      return w.t(e.to === 'firing' ? 'event.alert.firing' : 'event.alert.resolved', {
        text: e.text ?? '',
        for: who ? w.t('event.for', { who }) : '',
      })
  }
}

/** Good, bad or neither, for the mark beside the line. */
export function eventTone(e: TimelineEvent): 'good' | 'bad' | 'act' | 'plain' {
  if (e.kind === 'action') return 'act'
  if (e.to === 'firing' || e.to === 'degraded' || e.to === 'failed' || e.to === 'down' || (e.kind === 'zone' && e.to === 'off')) return 'bad'
  if (e.to === 'resolved' || e.to === 'ready' || e.to === 'up' || (e.kind === 'zone' && e.to === 'on')) return 'good'
  return 'plain'
}
