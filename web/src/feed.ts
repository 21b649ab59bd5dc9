import { useEffect, useRef, useState } from 'preact/hooks'
import type { Snapshot } from './model'

/** What the page knows of the console's data. */
export interface Feed {
  snapshot: Snapshot | null
  /** Seconds since the last message, by this browser's own clock. */
  silent: number
  connected: boolean
  /** The console wants its token. */
  locked: boolean
  unlock: (token: string) => Promise<boolean>
}

/** A console sends at least every 5 s; three times that without a word is too long. */
export const staleAfter = 15

const retryAfter = 2000

export function useFeed(): Feed {
  const [snapshot, setSnapshot] = useState<Snapshot | null>(null)
  const [connected, setConnected] = useState(false)
  const [locked, setLocked] = useState(false)
  const [silent, setSilent] = useState(0)
  const [attempt, setAttempt] = useState(0)
  const heard = useRef(performance.now())
  const process = useRef(0)

  useEffect(() => {
    if (locked) return
    let again = 0
    const source = new EventSource('/api/live')
    source.onopen = () => setConnected(true)
    source.onmessage = (message: MessageEvent<string>) => {
      const next = JSON.parse(message.data) as Snapshot
      heard.current = performance.now()
      setSilent(0)
      setConnected(true)
      // Another process may bring another page along.
      if (process.current && process.current !== next.started) location.reload()
      process.current = next.started
      setSnapshot(next)
    }
    source.onerror = () => {
      setConnected(false)
      if (source.readyState !== EventSource.CLOSED) return // it tries again by itself
      void fetch('/api/snapshot')
        .then((r) => setLocked(r.status === 401))
        .catch(() => undefined)
        .finally(() => (again = window.setTimeout(() => setAttempt((n) => n + 1), retryAfter)))
    }
    return () => {
      source.close()
      clearTimeout(again)
    }
  }, [attempt, locked])

  useEffect(() => {
    const tick = setInterval(() => setSilent(Math.round((performance.now() - heard.current) / 1000)), 1000)
    return () => clearInterval(tick)
  }, [])

  const unlock = async (token: string): Promise<boolean> => {
    const answer = await fetch('/api/login', { method: 'POST', body: token })
    if (answer.ok) setLocked(false)
    return answer.ok
  }
  return { snapshot, silent, connected, locked, unlock }
}

/** Asks for JSON now and every `seconds`, as long as the page is in view. */
export function usePoll<T>(url: string, seconds: number): { data: T | null; error: string } {
  const [data, setData] = useState<T | null>(null)
  const [error, setError] = useState('')
  useEffect(() => {
    let gone = false
    setData(null)
    const ask = async () => {
      if (document.hidden) return
      try {
        const answer = await fetch(url)
        const body = (await answer.json()) as T & { error?: string }
        if (gone) return
        if (answer.ok) setData(body)
        setError(answer.ok ? '' : (body.error ?? answer.statusText))
      } catch (e) {
        if (!gone) setError(String(e))
      }
    }
    void ask()
    const tick = setInterval(() => void ask(), seconds * 1000)
    const seen = () => void ask()
    document.addEventListener('visibilitychange', seen)
    return () => {
      gone = true
      clearInterval(tick)
      document.removeEventListener('visibilitychange', seen)
    }
  }, [url, seconds])
  return { data, error }
}
