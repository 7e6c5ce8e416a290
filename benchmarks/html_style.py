"""The style sheet of the HTML report: light and dark, wide and narrow, screen and paper.

Marks have the colours of Okabe and Ito (2008, "Color Universal Design"), which colour-blind readers
can tell apart; words and shapes always say the same.
"""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark;
  --paper: #ffffff; --card: #f5f7f9; --ink: #16191d; --soft: #525b66; --rule: #d3d9e0;
  --link: #005a92; --pass: #00664a; --fail: #a63a00; --warning: #7a5200; --info: #38506b;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #e69f00; --c5: #56b4e9;
  --grey: #7a828c; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #11151a; --card: #1a2027; --ink: #e9edf1; --soft: #a7b1bc; --rule: #353e49;
  --link: #7cc6f5; --pass: #4fd1a5; --fail: #ff9a5c; --warning: #f0c05a; --info: #a9c7e8;
  --c0: #56b4e9; --c1: #ee7f2d; --c2: #1fbf91; --c5: #2f93cf; --grey: #8d96a1; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main, header, footer { max-width: 74rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.75rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid var(--rule); }
p { margin: .5rem 0; max-width: 60rem; overflow-wrap: anywhere; }
.soft, figcaption, caption, footer, nav { color: var(--soft); }
a { color: var(--link); }
a:focus-visible, summary:focus-visible, .scroll:focus-visible { outline: 3px solid var(--c0);
  outline-offset: 2px; }
nav { margin: 1rem 0; display: flex; flex-wrap: wrap; gap: .25rem 1rem; font-size: .95rem; }
.tiles { display: grid; gap: .75rem; margin: 1.25rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 14rem), 1fr)); }
.tile { background: var(--card); border-radius: .5rem; padding: .9rem 1rem; min-width: 0; }
.tile dt { color: var(--soft); font-size: .9rem; }
.tile dd { margin: 0; overflow-wrap: anywhere; }
.tile .value { font-size: 1.75rem; font-weight: 650; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.tile .detail { font-size: .9rem; color: var(--soft); }
.verdicts { list-style: none; padding: 0; margin: 1rem 0; display: grid; gap: .4rem; }
.verdict { display: grid; grid-template-columns: 6.2rem 1fr; gap: .75rem; padding: .5rem .8rem;
  background: var(--card); border-left: .3rem solid var(--tone); border-radius: .25rem;
  overflow-wrap: anywhere; }
.verdict b { color: var(--tone); white-space: nowrap; }
.pass { --tone: var(--pass); } .fail { --tone: var(--fail); }
.warning { --tone: var(--warning); } .info { --tone: var(--info); }
.missing { border: 1px dashed var(--rule); border-radius: .4rem; padding: .6rem .9rem;
  color: var(--soft); }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 0 0 .4rem; caption-side: top; }
th, td { padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--rule); text-align: right;
  vertical-align: top; white-space: nowrap; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 500; position: sticky; left: 0; background: var(--paper); }
th.w, td.w { text-align: left; }
td.w { white-space: normal; min-width: 6.5rem; max-width: 40rem; overflow-wrap: break-word; }
details { margin: .75rem 0; } summary { cursor: pointer; color: var(--link); }
figure { margin: 1rem 0; min-width: 0; }
figcaption { font-size: .92rem; margin-bottom: .4rem; }
.charts { display: grid; gap: 1rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); }
.charts figure { max-width: 27rem; }
.chart { width: 100%; height: auto; display: block; font-size: 12px; }
.chart text { fill: var(--soft); } .chart .title { fill: var(--ink); }
.chart .strong { fill: var(--ink); font-weight: 600; paint-order: stroke; stroke-width: 4px;
  stroke: var(--paper); }
.axis { stroke: var(--soft); } .grid { stroke: var(--rule); }
.mark { stroke: var(--ink); stroke-dasharray: 3 3; } .column { fill: var(--c0); }
.chart .name { fill: var(--ink); }
.line { fill: none; stroke-width: 2.2; } .leader { stroke-width: 1; }
.line.limit { stroke: var(--ink); stroke-dasharray: 6 4; }
.line.c0 { stroke: var(--c0); } .line.c1 { stroke: var(--c1); } .line.c2 { stroke: var(--c2); }
.line.c3 { stroke: var(--c3); } .line.c4 { stroke: var(--c4); } .line.c5 { stroke: var(--c5); }
.dot { stroke: var(--paper); stroke-width: 1; }
.dot.c0 { fill: var(--c0); } .dot.c1 { fill: var(--c1); } .dot.c2 { fill: var(--c2); }
.dot.c3 { fill: var(--c3); } .dot.c4 { fill: var(--c4); } .dot.c5 { fill: var(--c5); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: 0 0 .5rem; padding: 0;
  list-style: none; font-size: .92rem; }
.swatch { display: inline-block; width: .85rem; height: .85rem; border-radius: 2px;
  margin-right: .4rem; vertical-align: -.08rem; background: var(--k); }
.bars { list-style: none; margin: 0; padding: 0; display: grid; gap: .55rem; }
.bars li { display: grid; grid-template-columns: minmax(0, 1fr); gap: 0 1rem; }
.bars .label { overflow-wrap: anywhere; } .bars .text { font-variant-numeric: tabular-nums; }
.bars .detail { color: var(--soft); } .bars .detail:not(:empty)::before { content: "· "; }
.bar { grid-column: 1 / -1; display: block; fill: var(--k); background: var(--card);
  border-radius: 2px; }
.k0 { --k: var(--c0); } .k1 { --k: var(--grey); } .k2 { --k: var(--c4); } .k3 { --k: var(--c5); }
.halo { stroke: var(--paper); stroke-width: 4; } .whisker { stroke: var(--ink); stroke-width: 1.5; }
img { max-width: 100%; height: auto; background: #ffffff; border-radius: .4rem; }
code { font-family: ui-monospace, "Cascadia Mono", Menlo, monospace; font-size: .9em;
  overflow-wrap: anywhere; }
footer { margin-top: 3rem; padding-bottom: 2.5rem; font-size: .9rem; }
@media (min-width: 46rem) {
  .bars li { grid-template-columns: 19rem minmax(0, 1fr) 18rem; align-items: center; }
  .bars .label { grid-row: 1; } .bar { grid-column: 2; grid-row: 1; }
  .bars .text { grid-column: 3; grid-row: 1; } }
@media (max-width: 30rem) {
  main, header, footer { padding: 0 .9rem; } header { padding-top: 1.25rem; }
  h1 { font-size: 1.5rem; }
  .verdict { grid-template-columns: 1fr; gap: 0; }
  tbody th { white-space: normal; min-width: 7rem; max-width: 9.5rem; overflow-wrap: anywhere; } }
@media print {
  :root { --paper: #fff; --card: #fff; --ink: #000; --soft: #444; --rule: #bbb; }
  nav { display: none; } .scroll { overflow: visible; } table { font-size: .75rem; }
  figure, .verdict, tr { break-inside: avoid; } h2 { break-after: avoid; }
  .bar, .swatch, .verdict { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
