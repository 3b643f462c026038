"""The style sheet of the HTML report: light and dark, wide and narrow."""

# The eight series colours stay apart for colour-blind readers in this order, on either background.
STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f6f3; --card: #fcfcfb; --ink: #0b0b0b; --soft: #52514e; --rule: #e1e0d9;
  --base: #b5b4ac; --high: #2a78d6; --low: #eb6834;
  --c0: #2a78d6; --c1: #1baf7a; --c2: #eda100; --c3: #008300;
  --c4: #4a3aa7; --c5: #e34948; --c6: #e87ba4; --c7: #8a8983;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f0f0e; --card: #1a1a19; --ink: #f4f4f1; --soft: #b4b3ab; --rule: #2f2f2c;
    --base: #55544e; --high: #3987e5; --low: #d95926;
    --c0: #3987e5; --c1: #199e70; --c2: #c98500; --c3: #008300;
    --c4: #9085e9; --c5: #e66767; --c6: #d55181; --c7: #8a8983;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1240px; padding: 24px 16px 48px; background: var(--page);
  color: var(--ink); font: 15px/1.45 system-ui, sans-serif;
}
h1 { font-size: 24px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 32px 0 12px; }
.soft, small { color: var(--soft); font-weight: normal; }
.tiles, .charts, .rows { display: grid; gap: 12px; }
.tiles { grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); margin-top: 20px; }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); }
.tiles > div, figure, table, details.block {
  background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
}
.tiles > div { padding: 10px 12px; overflow-wrap: anywhere; }
.tiles small { display: block; font-size: 12px; }
.tiles b { font-size: 20px; font-weight: 600; font-variant-numeric: tabular-nums; }
.tiles .long b { font-size: 16px; }
.tiles .wide b { font-size: 14px; }
.tiles .wide { grid-column: span 2; }
.tiles p { display: flex; justify-content: space-between; margin: 0; font-size: 13px; }
figure { margin: 0; padding: 12px 12px 6px; }
figcaption { font-weight: 600; }
figcaption .last { float: right; font-variant-numeric: tabular-nums; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 12px; font-size: 12px; color: var(--soft); }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; }
.legend i { margin-right: 5px; background: var(--c); }
svg { display: block; overflow: visible; width: 100%; height: auto; margin-top: 6px; }
svg text { fill: var(--soft); font-size: 11px; font-variant-numeric: tabular-nums; }
svg .end { text-anchor: end; }
svg .mid { text-anchor: middle; }
svg path { fill: none; stroke: var(--rule); stroke-width: 1; }
svg .base { stroke: var(--base); }
svg .mark { stroke: var(--ink); stroke-dasharray: 4 3; }
svg .line { stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
svg .band { fill: var(--c); fill-opacity: 0.22; stroke: none; }
svg .dot { fill: var(--c); stroke: var(--card); stroke-width: 1.5; }
svg .bar { fill: var(--c); }
.hover rect { fill: transparent; }
.hover path, .hover circle { visibility: hidden; }
.hover:hover path, .hover:hover circle { visibility: visible; }
.hover path { stroke: var(--base); }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); }
.c4 { --c: var(--c4); } .c5 { --c: var(--c5); } .c6 { --c: var(--c6); } .c7 { --c: var(--c7); }
details.block { margin-top: 16px; padding: 10px 12px; }
details.block > summary { font-weight: 600; }
details.block > .charts { margin-top: 12px; }
summary { cursor: pointer; }
pre { margin: 12px 0 0; font-size: 13px; white-space: pre-wrap; overflow-wrap: anywhere; }
table { width: 100%; border-collapse: separate; border-spacing: 0; font-size: 13px; }
th { text-align: left; color: var(--soft); font-weight: 600; }
th:first-child, th:last-child { text-align: right; }
th, td { padding: 7px 10px; vertical-align: top; }
td { border-top: 1px solid var(--rule); overflow-wrap: anywhere; }
td.text { white-space: pre-wrap; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td summary::after { content: " \\2026 more"; color: var(--high); }
td details[open] > summary::after { content: ""; }
td summary { list-style: none; }
td summary::-webkit-details-marker { display: none; }
.r0 { background: color-mix(in srgb, var(--low) 35%, transparent); }
.r1 { background: color-mix(in srgb, var(--low) 15%, transparent); }
.r3 { background: color-mix(in srgb, var(--high) 15%, transparent); }
.r4 { background: color-mix(in srgb, var(--high) 35%, transparent); }
@media (min-width: 641px) {
  td:nth-child(2) { width: 34%; }
  td:nth-child(3) { width: 46%; }
}
@media (max-width: 640px) {
  thead { display: none; }
  table, tbody, tr, td { display: block; }
  tr { padding: 8px 0; border-top: 1px solid var(--rule); }
  td, td.number { border: 0; padding: 2px 12px; text-align: left; }
  td::before { content: attr(data-name) ": "; color: var(--soft); font-weight: normal; }
}
"""
