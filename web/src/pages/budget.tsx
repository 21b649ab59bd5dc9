import { budgetTime, duration, nines, short } from '../format'
import { useWords } from '../i18n'
import type { Snapshot } from '../model'
import { Panel } from '../parts'
import { StateIcon } from '../icons'

export function Budget({ s }: { s: Snapshot }) {
  const w = useWords()
  const { objective, windowSeconds, coveredSeconds, left, burn } = s.slo
  const whole = windowSeconds * (1 - objective)
  const share = left === null ? 0 : Math.max(0, Math.min(1, left))
  return (
    <Panel id="budget" title={w.t('budget')}>
      <p class="muted">
        {w.t('budget.text', { o: nines(w.lang, objective), w: duration(w.lang, windowSeconds), m: budgetTime(w.lang, whole) })}{' '}
        {coveredSeconds !== null && coveredSeconds < windowSeconds * 0.98 ? w.t('budget.covered', { n: duration(w.lang, coveredSeconds) }) : null}
      </p>
      <div class="gauge" role="img" aria-label={`${w.t('tile.budget')}: ${left === null ? w.t('tile.noRequests') : short(w.lang, left * 100) + ' %'}`}>
        <svg viewBox="0 0 100 6" preserveAspectRatio="none" width="100%" height="10">
          <rect width="100" height="6" class="gauge-back" />
          <rect width={share * 100} height="6" class={left !== null && left < 0.25 ? 'gauge-low' : 'gauge-full'} />
        </svg>
      </div>
      <table class="plain">
        <thead>
          <tr>
            <th scope="col">{w.t('budget.window')}</th>
            <th scope="col" class="num">
              {w.t('budget.burn')}
            </th>
            <th scope="col" class="num">
              {w.t('budget.alert')}
            </th>
          </tr>
        </thead>
        <tbody>
          {burn.map((b) => {
            const fast = b.factor !== null && b.alert > 0 && b.factor > b.alert
            return (
              <tr key={b.window} class={fast ? 'row-bad' : ''}>
                <th scope="row">{b.window}</th>
                <td class="num">
                  {fast ? (
                    <>
                      <StateIcon state="degraded" silent /> <span class="away">{w.t('budget.fast')}</span>
                    </>
                  ) : null}
                  {b.factor === null ? '–' : short(w.lang, b.factor)}
                </td>
                <td class="num muted">{short(w.lang, b.alert)}</td>
              </tr>
            )
          })}
        </tbody>
      </table>
      <p class="muted">{w.t('budget.scale')}</p>
      <h3>{w.t('budget.spenders')}</h3>
      {s.spenders.length ? (
        <table class="plain">
          <tbody>
            {s.spenders.map((x) => (
              <tr key={x.class + x.code}>
                <th scope="row">{w.t('budget.spender', { class: x.class, code: x.code })}</th>
                <td class="num">{short(w.lang, Math.round(x.failed))}</td>
              </tr>
            ))}
          </tbody>
        </table>
      ) : (
        <p class="muted">{w.t('budget.none')}</p>
      )}
    </Panel>
  )
}
