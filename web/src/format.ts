// Numbers as people read them, in the page's language.

import type { Lang } from './i18n'

const cache = new Map<string, Intl.NumberFormat>()

function plain(lang: Lang, digits: number): Intl.NumberFormat {
  const key = lang + digits
  let f = cache.get(key)
  if (!f) cache.set(key, (f = new Intl.NumberFormat(lang === 'zh' ? 'zh-CN' : 'en-GB', { maximumFractionDigits: digits })))
  return f
}

/** Three digits that count, with k and M for large numbers. */
export function short(lang: Lang, v: number): string {
  const a = Math.abs(v)
  if (a >= 1e6) return plain(lang, 1).format(v / 1e6) + ' M'
  if (a >= 1e4) return plain(lang, a >= 1e5 ? 0 : 1).format(v / 1e3) + ' k'
  if (a >= 100) return plain(lang, 0).format(v)
  if (a >= 10) return plain(lang, 1).format(v)
  return plain(lang, a >= 1 ? 1 : 2).format(v)
}

export function bytes(lang: Lang, v: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let i = 0
  while (v >= 1024 && i < units.length - 1) {
    v /= 1024
    i++
  }
  return plain(lang, v < 10 && i > 0 ? 1 : 0).format(v) + ' ' + units[i]
}

/** A short time, given in seconds: 3 ms, 1.2 s. */
export function latency(lang: Lang, s: number): string {
  if (s < 0.01) return plain(lang, 1).format(s * 1000) + ' ms'
  if (s < 1) return plain(lang, 0).format(s * 1000) + ' ms'
  return plain(lang, s < 10 ? 2 : 1).format(s) + ' s'
}

export function percent(lang: Lang, share: number, digits = 1): string {
  return plain(lang, digits).format(share * 100) + ' %'
}

/** The objective keeps all its nines. */
export function nines(lang: Lang, share: number): string {
  return plain(lang, 5).format(Math.round(share * 1e8) / 1e6) + ' %'
}

const units = {
  en: { d: 'd', h: 'h', min: 'min', s: 's' },
  zh: { d: '天', h: '小时', min: '分', s: '秒' },
}

/** A length of time in at most two units: 45 s, 3 min 20 s, 2 h, 5 d 3 h. */
export function duration(lang: Lang, seconds: number): string {
  const u = units[lang]
  const s = Math.max(0, Math.round(seconds))
  const two = (a: number, x: string, b: number, y: string) => (b ? `${a} ${x} ${b} ${y}` : `${a} ${x}`)
  if (s < 60) return `${s} ${u.s}`
  if (s < 3600) return two(Math.floor(s / 60), u.min, s < 600 ? s % 60 : 0, u.s)
  if (s < 86400) return two(Math.floor(s / 3600), u.h, Math.floor((s % 3600) / 60), u.min)
  return two(Math.floor(s / 86400), u.d, Math.floor((s % 86400) / 3600), u.h)
}

/** Minutes of a budget, which are few and precious. */
export function budgetTime(lang: Lang, seconds: number): string {
  const u = units[lang]
  const sign = seconds < 0 ? '−' : ''
  const a = Math.abs(seconds)
  return sign + (a < 60 ? `${plain(lang, 0).format(a)} ${u.s}` : `${plain(lang, 1).format(a / 60)} ${u.min}`)
}

export function clock(lang: Lang, ms: number): string {
  return new Date(ms).toLocaleTimeString(lang === 'zh' ? 'zh-CN' : 'en-GB', { hour12: false })
}

export function day(lang: Lang, ms: number): string {
  return new Date(ms).toLocaleDateString(lang === 'zh' ? 'zh-CN' : 'en-GB', { weekday: 'short', year: 'numeric', month: 'short', day: 'numeric' })
}
