import { useState } from 'preact/hooks'
import { filters, passes, type Filter } from '../events'
import { usePoll } from '../feed'
import { useWords } from '../i18n'
import type { Snapshot, TimelineEvent } from '../model'
import { Alerts, Choice, Events, Panel } from '../parts'
import { StateIcon } from '../icons'

export function TimelinePage({ s }: { s: Snapshot }) {
  const w = useWords()
  const [filter, setFilter] = useState<Filter>('all')
  const { data } = usePoll<TimelineEvent[]>('/api/events', 30)
  // The snapshot has the newest, the answer the older ones.
  const newest = s.events[0]?.id ?? 0
  const known = new Set(s.events.map((e) => e.id))
  const all = [...s.events, ...(data ?? []).filter((e) => e.id <= newest && !known.has(e.id))].filter((e) => passes(e, filter))
  return (
    <Panel
      id="events"
      title={w.t('events')}
      aside={<Choice label={w.t('events.show')} value={filter} of={filters.map((f) => ({ value: f, text: w.t(`events.filter.${f}`) }))} onChange={setFilter} />}
    >
      {all.length ? <Events events={all} days /> : <p class="muted">{w.t('events.none')}</p>}
    </Panel>
  )
}

export function AlertsPage({ s }: { s: Snapshot }) {
  const w = useWords()
  return (
    <Panel id="alerts" title={w.t('alerts')}>
      <Alerts alerts={s.alerts} now={s.at} />
      <p class="muted">
        <StateIcon state={s.sources.watchdog ? 'ready' : 'degraded'} silent /> {w.t(s.sources.watchdog ? 'alerts.watchdog' : 'alerts.watchdog.off')}
      </p>
    </Panel>
  )
}
