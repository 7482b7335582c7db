"""How the report looks: on a desk, on a phone, in the dark, on paper."""

STYLE = """
:root { --ink: #1b1f24; --soft: #5b6470; --paper: #fff; --rule: #d8dde3; --eager: #1f5fae; --actual: #b8450b;
  --good: #16703a; --bad: #b01c2e; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e7eaee; --soft: #a3adb9; --paper: #14171b;
  --rule: #343b44; --eager: #79b0f5; --actual: #f5965e; --good: #5fce8c; --bad: #ff8490; } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 62rem; margin: 0 auto; padding: 1rem }
header { border-left: .6rem solid; padding: .2rem 1rem; margin-bottom: 2rem }
header.pass { border-color: var(--good) } header.fail { border-color: var(--bad) }
.state { font-size: 2.2rem; font-weight: 700; margin: 0; line-height: 1.2 }
.pass .state { color: var(--good) } .fail .state { color: var(--bad) }
h1 { font-size: 1.3rem; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
p, li, dd { overflow-wrap: anywhere }
.table { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--rule); white-space: nowrap;
  font-weight: normal; vertical-align: top }
.hashes td { white-space: normal; overflow-wrap: anywhere }
thead th { color: var(--soft); border-bottom-width: 2px }
tr.bad th, tr.bad td { color: var(--bad); font-weight: 600 }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem 2rem }
figure { margin: 1rem 0; max-width: 34rem } figcaption { color: var(--soft); font-size: .9rem }
svg { width: 100%; height: auto; font-size: 13px; fill: var(--ink) }
svg .grid { stroke: var(--rule) } svg .axis, svg .tick { stroke: var(--soft) }
svg .line { fill: none; stroke-width: 2.2 } svg .fill { opacity: .14; stroke: none }
svg .dot { stroke: var(--paper); stroke-width: .8 }
svg .line.eager { stroke: var(--eager); stroke-dasharray: 6 4 } svg .line.actual { stroke: var(--actual) }
svg .eager { fill: var(--eager) } svg .actual { fill: var(--actual) } svg .line { fill: none }
svg .right { fill: var(--good) } svg .wrong { fill: var(--bad) }
svg line.gate { stroke: var(--bad); stroke-dasharray: 3 3 } svg text.gate { fill: var(--bad) }
details { margin: .8rem 0 } summary { cursor: pointer }
dt { font-weight: 600 } dd { margin: 0 0 .5rem }
@media (max-width: 40rem) { body { font-size: 15px } svg { font-size: 15px } th, td { padding-right: .7rem }
  thead th, th[scope=row] { white-space: normal } th[scope=row] { min-width: 6rem; overflow-wrap: anywhere } }
@media print { :root { --ink: #000; --paper: #fff } main { max-width: none; padding: 0 } body { font-size: 10pt }
  h2 { margin: 1.2rem 0 .3rem; break-after: avoid } figure, tr, header, .charts > * { break-inside: avoid }
  figure { width: 9cm; margin: .4rem 0 } .charts { grid-template-columns: 1fr 1fr }
  .table { overflow: visible } table { font-size: 8pt } th, td { padding: .12rem .6rem .12rem 0 }
  details:not(.long)::details-content { content-visibility: visible; block-size: auto } details.long { display: none } }
"""
