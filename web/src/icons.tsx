import type { JSX } from 'preact'
import { useWords } from './i18n'
import type { EventKind, State } from './model'

// Each state has a shape of its own, so that nobody needs the colours.
const shapes: Record<State, JSX.Element> = {
  ready: (
    <>
      <circle cx="8" cy="8" r="7" fill="currentColor" />
      <path d="M4.8 8.3 7 10.5l4.2-4.7" class="cut" />
    </>
  ),
  starting: (
    <>
      <circle cx="8" cy="8" r="6" fill="none" stroke="currentColor" stroke-width="2" stroke-dasharray="2.6 2.1" />
      <circle cx="8" cy="8" r="2" fill="currentColor" />
    </>
  ),
  degraded: (
    <>
      <path d="M8 1 15.4 14.5H.6z" fill="currentColor" />
      <path d="M8 6v4M8 11.6v1.2" class="cut" />
    </>
  ),
  failed: (
    <>
      <path d="M4.9.8h6.2l4.1 4.1v6.2l-4.1 4.1H4.9L.8 11.1V4.9z" fill="currentColor" />
      <path d="m5.3 5.3 5.4 5.4m0-5.4-5.4 5.4" class="cut" />
    </>
  ),
  stopped: <rect x="2.5" y="2.5" width="11" height="11" rx="1" fill="none" stroke="currentColor" stroke-width="2" />,
}

export function StateIcon({ state, silent }: { state: State; silent?: boolean }) {
  const { t } = useWords()
  return (
    <span class={'state s-' + state}>
      <svg viewBox="0 0 16 16" width="12" height="12" aria-hidden="true">
        {shapes[state]}
      </svg>
      {silent ? null : <span class="away">{t(`state.${state}`)}</span>}
    </span>
  )
}

const eventShapes: Record<EventKind, JSX.Element> = {
  stack: <path d="M2 4h12M2 8h12M2 12h12" />,
  state: <circle cx="8" cy="8" r="4.5" />,
  role: <path d="M3 6h9L9.5 3.5M13 10H4l2.5 2.5" />,
  restart: <path d="M13 8a5 5 0 1 1-1.6-3.7M13 2v3h-3" />,
  zone: <path d="M3 3h10v10H3zM8 3v10" />,
  action: <path d="M5 3v10l8-5z" fill="currentColor" />,
  alert: <path d="M8 2 14.5 13.5h-13zM8 6v4M8 11.3v.8" />,
}

export function EventIcon({ kind }: { kind: EventKind }) {
  return (
    <svg viewBox="0 0 16 16" width="14" height="14" aria-hidden="true" class="line-icon">
      {eventShapes[kind]}
    </svg>
  )
}
