// How each figure is written, and which of them stand beside a component.

import { bytes, latency, percent, short } from './format'
import type { Words } from './i18n'
import type { Component, Figures } from './model'

export function figureValue(w: Words, name: string, v: number): string {
  switch (name) {
    case 'p50':
    case 'p99':
      return latency(w.lang, v)
    case 'lagBytes':
    case 'dataBytes':
      return bytes(w.lang, v)
    case 'trusted':
    case 'cacheHitRatio':
      return percent(w.lang, v, 0)
    case 'yields':
      return v ? w.t('yes') : w.t('no')
    case 'limit':
      return v ? short(w.lang, v) : '∞'
  }
  return short(w.lang, v)
}

export const figureName = (w: Words, name: string): string => w.maybe('f.' + name, name)

/** "12 requests/s": the value with its name behind it. */
export function figureText(w: Words, name: string, v: number): string {
  return `${figureValue(w, name, v)} ${figureName(w, name)}`
}

const beside: Record<string, string[]> = {
  gateway: ['rps', 'inFlight'],
  'dify-api': ['rps', 'inFlight'],
  'dify-worker': ['tasks', 'tasksActive'],
  pgproxy: ['queries', 'clients'],
  redisproxy: ['commands', 'clients'],
  milvus: ['rps'],
  etcd: ['proposals'],
  loadbalancer: ['connections'],
}

/** The figures beside a component on the map: what it does, and what it waits for. */
export function besideOf(c: Component): string[] {
  let names = beside[c.kind] ?? []
  if (c.kind === 'postgres') names = c.role === 'primary' ? ['transactions'] : ['lagBytes']
  if (c.kind === 'redis') names = c.role === 'master' ? ['commands'] : ['lagBytes']
  if (c.figures['held']) names = ['held', ...names]
  return names.filter((n) => c.figures[n] !== undefined).slice(0, 2)
}

/** All figures, in the order in which the console knows them. */
export function figureRows(w: Words, figures: Figures): { name: string; label: string; value: string }[] {
  return Object.entries(figures).map(([name, v]) => ({ name, label: figureName(w, name), value: figureValue(w, name, v) }))
}
