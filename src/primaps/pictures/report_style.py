"""How the page of a report looks: on a screen, light and dark, on a phone and on paper."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #626b76; --line: #d9dde2;
  --paper: #ffffff; --panel: #f5f6f8; --accent: #0067a5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a0a8b2; --line: #3a4048;
  --paper: #16191d; --panel: #1f2329; --accent: #6db3e8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 68rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p { max-width: 44rem; margin: .4rem 0; } .soft, figcaption, th { color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem; margin: .8rem 0; }
a { color: var(--accent); }
.key { display: inline-block; width: .9em; height: .9em; border-radius: .2em;
  border: 1px solid var(--line); vertical-align: -.08em; margin-right: .45em; }
.class { border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem;
  margin: .8rem 0; background: var(--panel); break-inside: avoid; }
.class h3 { font-size: 1.05rem; margin: 0; overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; margin: .2rem 0 .6rem;
  font-size: .9rem; font-variant-numeric: tabular-nums; }
.crops { display: grid; grid-template-columns: 1fr 1fr; gap: .4rem 1.2rem; }
.row { display: flex; flex-wrap: wrap; gap: .3rem; }
.row img { height: 6rem; width: auto; max-width: 100%; border-radius: .3rem; object-fit: cover; }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr));
  gap: .8rem; }
figure { margin: 0; break-inside: avoid; }
figure img { width: 100%; height: auto; border-radius: .3rem; }
figcaption { font-size: .8rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } svg { max-width: 100%; height: auto; } svg text { fill: var(--ink); }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
td, th { padding: .15rem .45rem; text-align: right; font-weight: normal; }
th.name { text-align: left; white-space: nowrap; } th.up { writing-mode: vertical-rl; }
@media (max-width: 40rem) { .crops { grid-template-columns: 1fr; } .row img { height: 3.6rem; }
  .images { grid-template-columns: 1fr 1fr; } }
@media print { body { max-width: none; padding: 0; font-size: 11px; } nav { display: none; }
  .row img { height: 3.6rem; } .images { grid-template-columns: repeat(5, 1fr); } }
"""
