import type { ComponentChildren } from 'preact'
import { bytes, duration, percent, short } from '../format'
import { StateIcon } from '../icons'
import { useWords } from '../i18n'
import type { Snapshot } from '../model'
import { Panel } from '../parts'

/** Backups, cache, queue and what else is kept or waits. */
export function DataPanel({ s }: { s: Snapshot }) {
  const w = useWords()
  const f = s.totals
  const ago = (v: number) => w.t('data.ago', { n: duration(w.lang, v) })
  const has = (name: string): boolean => f[name] !== undefined
  const at = (name: string): number => f[name] ?? 0
  const jobs = ['jobsQueued', 'jobsRunning', 'jobsDead'].some(has)
  return (
    <Panel id="data" title={w.t('data')}>
      <dl class="facts">
        {has('backups') || has('backupFailed') ? (
          <>
            <Fact
              label={w.t('data.backup')}
              bad={at('backupFailed') ? w.t('data.failed') : has('backupAge') && has('backupMaxAge') && at('backupAge') > at('backupMaxAge') ? w.t('data.old') : ''}
              note={has('backups') ? w.t('data.stored', { n: short(w.lang, at('backups')), b: bytes(w.lang, at('backupBytes')) }) : ''}
            >
              {has('backupAge') ? ago(at('backupAge')) : w.t('data.backup.none')}
            </Fact>
            <Fact label={w.t('data.archive')} bad={at('archiveLag') > 120 ? w.t('data.old') : ''}>
              {!has('archiveLag') ? w.t('unknown') : at('archiveLag') > 0 ? w.t('data.archive.lag', { n: duration(w.lang, at('archiveLag')) }) : w.t('data.archive.ok')}
            </Fact>
            <Fact
              label={w.t('data.drill')}
              bad={at('drillFailed') ? w.t('data.failed') : ''}
              note={has('drillRTO') ? w.t('data.drill.text', { rto: duration(w.lang, at('drillRTO')), rpo: duration(w.lang, at('drillRPO')) }) : ''}
            >
              {has('drillRTO') && has('drillAge') ? ago(at('drillAge')) : w.t('data.drill.none')}
            </Fact>
          </>
        ) : null}
        <Fact label={w.t('data.sync')} bad={has('syncStandbys') && at('syncStandbys') < 1 ? w.t('role.standby') + ' 0' : ''}>
          {has('syncStandbys') ? short(w.lang, at('syncStandbys')) : w.t('unknown')}
        </Fact>
        <Fact label={w.t('data.slots')} bad={has('slots') && at('slots') < 16384 ? '< 16384' : ''}>
          {has('slots') ? `${at('slots')} / 16384` : w.t('unknown')}
        </Fact>
        <Fact
          label={w.t('data.cache')}
          note={has('cacheEntries') ? w.t('data.cache.kept', { n: short(w.lang, at('cacheEntries')), b: bytes(w.lang, at('cacheBytes')) }) : ''}
        >
          {!has('cacheLookups')
            ? w.t('data.cache.off')
            : at('cacheLookups') > 0
              ? w.t('data.cache.text', { share: percent(w.lang, at('cacheHits') / at('cacheLookups'), 0), n: short(w.lang, at('cacheLookups')) })
              : w.t('data.cache.idle')}
        </Fact>
        {jobs ? (
          <Fact
            label={w.t('data.jobs')}
            bad={at('jobsDead') ? w.t('data.jobs.dead', { n: short(w.lang, at('jobsDead')) }) : ''}
            note={at('jobsOldest') > 0 ? w.t('data.jobs.oldest', { n: duration(w.lang, at('jobsOldest')) }) : ''}
          >
            {w.t('data.jobs.text', { q: short(w.lang, at('jobsQueued')), r: short(w.lang, at('jobsRunning')) })}
          </Fact>
        ) : null}
        <Fact label={w.t('data.scrape')} bad={at('targetsDown') ? w.t('data.scrape.down', { n: at('targetsDown') }) : ''}>
          {has('targetsUp') ? w.t('data.scrape.text', { n: at('targetsUp') }) : w.t('unknown')}
        </Fact>
      </dl>
    </Panel>
  )
}

function Fact(props: { label: string; bad?: string; note?: string; children: ComponentChildren }) {
  return (
    <div class="fact">
      <dt>{props.label}</dt>
      <dd>
        {props.children}
        {props.note ? <span class="muted"> · {props.note}</span> : null}
        {props.bad ? (
          <span class="fact-bad">
            <StateIcon state="degraded" silent /> {props.bad}
          </span>
        ) : null}
      </dd>
    </div>
  )
}
