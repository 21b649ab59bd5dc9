import { useWords } from '../i18n'
import { isTask, layers, type Component, type Snapshot, type Zone } from '../model'
import { Chip, Panel } from '../parts'
import { StateIcon } from '../icons'
import { percent } from '../format'

/** The zones side by side, and the layers from the users down to the data. */
export function ZoneMap({ s }: { s: Snapshot }) {
  const w = useWords()
  const zones = s.stack.zones.filter((z) => z.name)
  const outside = (s.stack.zones.find((z) => !z.name)?.components ?? []).filter((c) => !isTask(c))
  const front = outside.filter((c) => c.kind === 'loadbalancer')
  const helpers = outside.filter((c) => c.kind !== 'loadbalancer')
  const of = (z: Zone, kind: string): Component[] => z.components.filter((c) => c.kind === kind && !isTask(c))
  const rest = [...new Set(zones.flatMap((z) => z.components.filter((c) => !isTask(c) && !layers.includes(c.kind)).map((c) => c.kind)))]
  const rows = [...layers, ...rest].filter((kind) => zones.some((z) => of(z, kind).length))
  const total = s.flows.reduce((n, f) => n + f.rps, 0)
  const across = s.flows.filter((f) => f.from !== f.to).reduce((n, f) => n + f.rps, 0)
  return (
    <Panel
      id="map"
      title={w.t('map')}
      class="map"
      aside={total > 0 ? <span class="muted">{w.t('flows.text', { share: percent(w.lang, across / total, 0) })}</span> : null}
    >
      <table class="zones">
        <thead>
          <tr>
            <th scope="col" class="layer">
              {w.t('map.layer')}
            </th>
            {zones.map((z) => (
              <th key={z.name} scope="col" class={hurt(z) ? 'hurt' : ''}>
                {w.t('map.zone', { n: z.name })} <ZoneState z={z} />
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {front.length ? (
            <tr class="wide">
              <th scope="row" class="layer">
                {w.t('kind.loadbalancer')}
              </th>
              <td colSpan={zones.length}>
                <div class="cell">
                  {front.map((c) => (
                    <Chip key={c.name} c={c} />
                  ))}
                </div>
              </td>
            </tr>
          ) : null}
          {rows.map((kind) => (
            <tr key={kind}>
              <th scope="row" class="layer">
                {w.maybe('kind.' + kind, kind)}
              </th>
              {zones.map((z) => {
                const here = of(z, kind)
                return (
                  <td key={z.name} class={(hurt(z) ? 'hurt ' : '') + (here.length ? '' : 'empty')} data-zone={w.t('map.zone', { n: z.name })}>
                    <div class="cell">
                      {here.length ? here.map((c) => <Chip key={c.name} c={c} />) : <span class="away">{w.t('map.none')}</span>}
                    </div>
                  </td>
                )
              })}
            </tr>
          ))}
          {helpers.length ? (
            <tr class="wide">
              <th scope="row" class="layer">
                {w.t('map.outside')}
              </th>
              <td colSpan={zones.length}>
                <div class="cell">
                  {helpers.map((c) => (
                    <Chip key={c.name} c={c} />
                  ))}
                </div>
              </td>
            </tr>
          ) : null}
        </tbody>
      </table>
    </Panel>
  )
}

const hurt = (z: Zone): boolean => z.power === 'off' || z.link === 'down'

function ZoneState({ z }: { z: Zone }) {
  const w = useWords()
  if (!hurt(z)) return null
  return (
    <span class="zone-hurt">
      <StateIcon state="failed" silent /> {w.t(z.power === 'off' ? 'map.noPower' : 'map.cut')}
    </span>
  )
}
