import { useEffect, useRef, useState } from 'preact/hooks'
import { staleAfter, useFeed } from './feed'
import { duration } from './format'
import { StateIcon } from './icons'
import { useWords, wordsOf, WordsContext, type Key, type Lang } from './i18n'
import type { Snapshot, Source } from './model'
import { Choice } from './parts'
import { Overview, Verdict, verdict } from './pages/overview'
import { AppPage, AppsPage, ComponentPage } from './pages/subject'
import { AlertsPage, TimelinePage } from './pages/timeline'

type Theme = 'auto' | 'light' | 'dark'

function keep(key: string, value: string) {
  try {
    localStorage.setItem('fournines.' + key, value)
  } catch {
    // Storage may be forbidden; the choice lasts as long as the page then.
  }
}

function kept(key: string): string | null {
  try {
    return localStorage.getItem('fournines.' + key)
  } catch {
    return null
  }
}

const firstLang = (): Lang => {
  const chosen = kept('lang')
  if (chosen === 'en' || chosen === 'zh') return chosen
  return navigator.languages.some((l) => l.startsWith('zh')) && !navigator.language.startsWith('en') ? 'zh' : 'en'
}

const firstTheme = (): Theme => {
  const chosen = kept('theme')
  return chosen === 'light' || chosen === 'dark' ? chosen : 'auto'
}

/** The part of the address behind "#/", in pieces. */
function useRoute(): string[] {
  const read = () => location.hash.replace(/^#\/?/, '').split('/').map(decodeURIComponent)
  const [route, setRoute] = useState(read)
  useEffect(() => {
    const changed = () => setRoute(read())
    addEventListener('hashchange', changed)
    return () => removeEventListener('hashchange', changed)
  }, [])
  return route
}

/** True while the system wants the dark theme. */
function useSystemDark(): boolean {
  const query = matchMedia('(prefers-color-scheme: dark)')
  const [dark, setDark] = useState(query.matches)
  useEffect(() => {
    const changed = () => setDark(query.matches)
    query.addEventListener('change', changed)
    return () => query.removeEventListener('change', changed)
  }, [])
  return dark
}

const pages: { path: string; title: Key }[] = [
  { path: '', title: 'overview' },
  { path: 'apps', title: 'apps' },
  { path: 'timeline', title: 'timeline' },
  { path: 'alerts', title: 'alerts' },
]

export function App() {
  const feed = useFeed()
  const route = useRoute()
  const [lang, setLang] = useState<Lang>(firstLang)
  const [theme, setTheme] = useState<Theme>(firstTheme)
  const systemDark = useSystemDark()
  const main = useRef<HTMLElement>(null)
  const words = wordsOf(lang)
  const { t } = words
  const s = feed.snapshot

  useEffect(() => {
    document.documentElement.lang = lang === 'zh' ? 'zh-CN' : 'en'
  }, [lang])
  useEffect(() => {
    if (theme === 'auto') delete document.documentElement.dataset['theme']
    else document.documentElement.dataset['theme'] = theme
  }, [theme])
  const at = route.join('/')
  const before = useRef(at)
  useEffect(() => {
    if (before.current === at) return
    before.current = at
    scrollTo(0, 0)
    main.current?.focus({ preventScroll: true })
  }, [at])
  const title = route[0] === 'component' || route[0] === 'app' ? (route[1] ?? '') : t(pages.find((p) => p.path === route[0])?.title ?? 'overview')
  useEffect(() => {
    document.title = `${s && !feed.locked ? mark(s, words) : ''}${title} · ${s?.stack.name ?? 'fournines'}`
  })

  const colours = theme === 'auto' ? (systemDark ? 'dark' : 'light') : theme
  const stale = !!s && feed.silent >= staleAfter
  return (
    <WordsContext.Provider value={words}>
      <a class="skip" href="#main" onClick={(e) => { e.preventDefault(); main.current?.focus() }}>
        {t('skip')}
      </a>
      <header class="top">
        <div class="brand">
          <img src="/favicon.svg" alt="" width="20" height="20" />
          <b>fournines</b>
          {s?.stack.name ? <span class="stack-name">{s.stack.name}</span> : null}
        </div>
        <nav aria-label={t('sections')}>
          {pages.map((p) => (
            <a key={p.path} href={'#/' + p.path} aria-current={(route[0] ?? '') === p.path ? 'page' : undefined}>
              {t(p.title)}
              {p.path === 'alerts' && s?.alerts.length ? <span class="count">{s.alerts.length}</span> : null}
            </a>
          ))}
        </nav>
        <div class="tools">
          <span class={'feed ' + (stale ? 'f-old' : feed.connected ? 'f-live' : 'f-wait')}>
            <StateIcon state={stale ? 'degraded' : feed.connected ? 'ready' : 'starting'} silent />
            {t(stale ? 'old' : feed.connected ? 'live' : 'connecting')}
          </span>
          <Choice
            label={t('theme')}
            value={theme}
            of={(['auto', 'light', 'dark'] as const).map((v) => ({ value: v, text: t(`theme.${v}`) }))}
            onChange={(v) => {
              keep('theme', v)
              setTheme(v)
            }}
          />
          <Choice
            label={t('language')}
            value={lang}
            of={[
              { value: 'en', text: 'English' },
              { value: 'zh', text: '中文' },
            ]}
            onChange={(v) => {
              keep('lang', v)
              setLang(v)
            }}
          />
        </div>
      </header>
      <main id="main" ref={main} tabIndex={-1} class={stale ? 'stale' : ''}>
        <h1 class="away">{title}</h1>
        {feed.locked ? <Login unlock={feed.unlock} /> : null}
        {stale ? (
          <p class="banner b-bad" role="alert">
            <StateIcon state="degraded" silent /> {t('old.text', { n: duration(lang, feed.silent) })}
          </p>
        ) : null}
        {s && !feed.locked ? <Sources s={s} /> : null}
        {s && !feed.locked ? <Page s={s} route={route} theme={colours} /> : null}
        {!s && !feed.locked ? <p class="nothing tall">{t('waiting')}</p> : null}
      </main>
      <footer class="foot muted">fournines {s?.version ?? ''}</footer>
    </WordsContext.Provider>
  )
}

/** What is wrong shows in the tab's title as well. */
function mark(s: Snapshot, words: ReturnType<typeof wordsOf>): string {
  const { state } = verdict(words, s)
  return state === 'failed' || state === 'degraded' || state === 'stopped' ? '▲ ' : ''
}

function Page({ s, route, theme }: { s: Snapshot; route: string[]; theme: string }) {
  const name = route[1] ?? ''
  switch (route[0]) {
    case 'component':
      return <ComponentPage key={name} s={s} name={name} theme={theme} />
    case 'app':
      return <AppPage key={name} s={s} name={name} theme={theme} />
    case 'apps':
      return <AppsPage s={s} />
    case 'timeline':
      return <TimelinePage s={s} />
    case 'alerts':
      return <AlertsPage s={s} />
  }
  return (
    <>
      <Verdict s={s} />
      <Overview s={s} theme={theme} />
    </>
  )
}

/** Says which source does not answer, and since when. */
function Sources({ s }: { s: Snapshot }) {
  const words = useWords()
  const list: [string, Source][] = [
    ['source.stack', s.sources.stack],
    ['source.prometheus', s.sources.prometheus],
    ['source.alertmanager', s.sources.alertmanager],
  ]
  return (
    <>
      {list
        .filter(([, source]) => source.error)
        .map(([key, source]) => (
          <p key={key} class="banner b-warn" role="status" title={source.error}>
            <StateIcon state="degraded" silent /> {words.maybe(source.at ? key : key + '.never', key, { n: duration(words.lang, (s.at - source.at) / 1000) })}
          </p>
        ))}
    </>
  )
}

function Login({ unlock }: { unlock: (token: string) => Promise<boolean> }) {
  const words = useWords()
  const [wrong, setWrong] = useState(false)
  const field = useRef<HTMLInputElement>(null)
  return (
    <form
      class="panel login"
      onSubmit={(e) => {
        e.preventDefault()
        void unlock(field.current?.value ?? '').then((ok) => setWrong(!ok))
      }}
    >
      <h2>{words.t('login.title')}</h2>
      <p class="muted">{words.t('login.text')}</p>
      <label>
        {words.t('login.token')}
        <input type="password" ref={field} autocomplete="current-password" required aria-invalid={wrong} />
      </label>
      <button type="submit">{words.t('login.enter')}</button>
      {wrong ? (
        <p class="problem" role="alert">
          {words.t('login.wrong')}
        </p>
      ) : null}
    </form>
  )
}
