// The answers of the console's API; the Go types are in console/model.go.

export type State = 'ready' | 'starting' | 'degraded' | 'stopped' | 'failed'

/** Numbers by name. What is not known is absent. */
export type Figures = Record<string, number>

export interface Component {
  name: string
  kind: string
  role?: string
  state: State
  address?: string
  pid?: number
  restarts: number
  reason?: string
  memoryBytes?: number
  figures: Figures
}

export interface Zone {
  name: string
  power?: string
  link?: string
  components: Component[]
}

export interface Burn {
  window: string
  factor: number | null
  alert: number
}

export interface Source {
  at: number
  error?: string
}

export interface Alert {
  id: string
  name: string
  severity: string
  component?: string
  zone?: string
  summary: string
  since: number
  muted: boolean
}

export type EventKind = 'stack' | 'state' | 'role' | 'restart' | 'zone' | 'action' | 'alert'

export interface TimelineEvent {
  id: number
  at: number
  kind: EventKind
  component?: string
  zone?: string
  from?: string
  to?: string
  text?: string
}

export interface Named {
  name: string
  figures: Figures
}

export interface Snapshot {
  seq: number
  at: number
  version: string
  started: number
  stack: {
    name: string
    state: State
    startSeconds: number
    zones: Zone[]
    endpoints: Record<string, string>
  }
  slo: {
    objective: number
    windowSeconds: number
    coveredSeconds: number | null
    left: number | null
    burn: Burn[]
  }
  sources: { stack: Source; prometheus: Source; alertmanager: Source; watchdog: boolean }
  totals: Figures
  flows: { from: string; to: string; rps: number }[]
  spenders: { class: string; code: string; failed: number }[]
  apps: Named[]
  limits: Named[]
  alerts: Alert[]
  events: TimelineEvent[]
}

export interface Series {
  step: number
  t: number[]
  lines: Record<string, (number | null)[]>
}

/** A component and the zone it stands in; "" is outside all zones. */
export interface Placed {
  component: Component
  zone: string
}

/** A one-shot task that has done its work is of no interest. */
export const isTask = (c: Component): boolean => !c.pid && c.state === 'ready'

export function placed(s: Snapshot): Placed[] {
  return s.stack.zones.flatMap((z) => z.components.filter((c) => !isTask(c)).map((component) => ({ component, zone: z.name })))
}

/** The layers of the map from the users down, by the kind of component. */
export const layers = [
  'gateway', 'dify-api', 'dify-worker', 'pgproxy', 'postgres', 'redisproxy', 'redis', 'milvus', 'etcd', 'postgres-exporter',
]
