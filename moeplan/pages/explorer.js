// The grid is looked up, never computed: a scenario is a place on every axis.
const rows = new Map(data.rows.map(row => [row.at.join(), row]));
const at = data.axes.map(axis => axis.start);
const FIGURES = [
  ['tokens/s', 'tokens_per_s', value => digits(value)],
  ['a token', 'decode_step_s', seconds],
  ['prompt', 'prefill_s', seconds],
  ['GPU memory left', 'gpu_headroom_bytes', gigabytes],
  ['experts on the CPU', 'experts_on_cpu', value => `${digits(100 * value)}%`],
  ['gap to the bound', 'gap', value => `${digits(100 * value, 1)}%`],
  ['what binds', 'binds', String],
];

function controls() {
  data.axes.forEach((axis, number) => {
    const id = `axis-${axis.name}`, label = element('label', undefined, { class: 'control', for: id });
    const top = element('span', axis.title), output = element('output', '', { id: `${id}-value`, for: id });
    const input = axis.ordered ? slider(axis, id) : choice(axis, id);
    top.append(axis.ordered ? output : '');
    input.value = at[number];
    input.addEventListener(axis.ordered ? 'input' : 'change', () => { at[number] = Number(input.value); draw(); });
    label.append(top);
    byId('controls').append(label, input);
  });
  data.axes.forEach((axis, number) => byId('across').append(element('option', axis.title, { value: number })));
  byId('across').addEventListener('change', draw);
  byId('speed').hidden = byId('controls').hidden = !data.axes.length;
}

const slider = (axis, id) => element('input', undefined, { type: 'range', id, min: 0, max: axis.values.length - 1, step: 1 });

function choice(axis, id) {
  const select = element('select', undefined, { id });
  axis.values.forEach((value, place) => select.append(element('option', value, { value: place })));
  return select;
}

// Only what is proved not to fit does not; the rest nobody knows.
const misfit = row => Boolean(row) && !row.fits && (row.status || 'infeasible') === 'infeasible';

function said(row) {
  if (!row) return 'not solved';
  if (row.fits) return row.status === 'optimal' ? 'fits, proved best' : 'fits';
  return misfit(row) ? row.why || 'does not fit' : [row.status, row.why].filter(Boolean).join(': ');
}

function verdict(row) {
  byId('verdict').textContent = said(row);
  byId('verdict').className = row && row.fits ? 'good' : 'bad';
  byId('figures').replaceChildren(...FIGURES.filter(([, name]) => row && row[name] !== undefined).map(([title, name, text]) => {
    const pair = element('div');
    pair.append(element('dt', title), element('dd', text(row[name]), { id: `figure-${name}` }));
    return pair;
  }));
  data.axes.forEach((axis, number) => {
    if (!axis.ordered) return;
    byId(`axis-${axis.name}-value`).textContent = axis.values[at[number]];
    byId(`axis-${axis.name}`).setAttribute('aria-valuetext', axis.values[at[number]]);
  });
}

function picture(row) {
  const plan = row && row.plan !== undefined ? data.plans[row.plan] : null;
  byId('picture').hidden = !plan;
  if (!plan) return;
  layerMap('map', plan);
  byId('memory').hidden = !plan.memory;
  if (plan.memory) memoryBars('memory', plan.memory);
}

// The scenarios along the chosen axis, all else as chosen.
function along(number) {
  return data.axes[number].values.map((value, place) => rows.get(at.map((p, n) => (n === number ? place : p)).join()));
}

function line() {
  if (!data.axes.length) return;
  const number = Number(byId('across').value), axis = data.axes[number], found = along(number), here = at[number];
  const speeds = found.map(row => (row && row.fits ? row.tokens_per_s : null));
  const misfits = found.flatMap((row, place) => (misfit(row) ? [place] : []));
  const unknown = found.flatMap((row, place) => ((row && row.fits) || misfit(row) ? [] : [place]));
  const band = place => ({
    type: 'rect', x0: place - 0.5, x1: place + 0.5, y0: 0, y1: 1, yref: 'paper', fillcolor: colour('--misfit'), line: { width: 0 }, layer: 'below',
  });
  const border = place => ({
    type: 'line', x0: place, x1: place, y0: 0, y1: 1, yref: 'paper', line: { color: colour('--bad'), width: 1.5, dash: 'dash' },
  });
  const borders = found.slice(1).flatMap((row, place) => (misfit(row) !== misfit(found[place]) ? [place + 0.5] : []));
  chart('line', [
    { type: 'scatter', mode: 'lines+markers', name: 'fits', x: speeds.map((_, place) => place), y: speeds, line: { color: colour('--accent') }, marker: { size: 8 }, hovertemplate: '%{y:.3g} tokens/s<extra></extra>' },
    { type: 'scatter', mode: 'markers', name: 'does not fit', x: misfits, y: misfits.map(() => 0), marker: { symbol: 'x', size: 9, color: colour('--bad') }, cliponaxis: false, hoverinfo: 'skip' },
    ...(unknown.length ? [{ type: 'scatter', mode: 'markers', name: 'not known', x: unknown, y: unknown.map(() => 0), marker: { symbol: 'diamond-open', size: 9, color: colour('--soft') }, cliponaxis: false, hoverinfo: 'skip' }] : []),
    { type: 'scatter', mode: 'markers', name: 'chosen', x: [here], y: [speeds[here] ?? 0], marker: { symbol: 'circle-open', size: 18, color: colour('--ink'), line: { width: 3 } }, cliponaxis: false, hoverinfo: 'skip' },
  ], {
    height: 320, shapes: [...misfits.map(band), ...borders.map(border)],
    xaxis: { title: { text: axis.title, standoff: 4 }, tickvals: axis.values.map((_, place) => place), ticktext: axis.values.map(plain), range: [-0.5, axis.values.length - 0.5], showgrid: false, zeroline: false },
    yaxis: { title: { text: 'tokens/s', standoff: 4 }, rangemode: 'tozero' },
  }, `Decode speed against ${axis.title}; ${misfits.length} of ${found.length} do not fit`);
  table(axis, found, here);
}

function table(axis, found, here) {
  const head = element('thead'), body = element('tbody'), top = element('tr');
  [axis.title, 'tokens/s', 'prompt', 'fits'].forEach(name => top.append(element('th', name, { scope: 'col' })));
  head.append(top);
  found.forEach((row, place) => {
    const cells = row && row.fits ? [digits(row.tokens_per_s), seconds(row.prefill_s), 'yes'] : ['', '', misfit(row) ? 'no' : row ? row.status : 'not solved'];
    const made = element('tr', undefined, place === here ? { class: 'chosen' } : {});
    made.append(element('th', axis.values[place], { scope: 'row' }), ...cells.map(cell => element('td', cell)));
    body.append(made);
  });
  byId('rows').replaceChildren(head, body);
}

function draw() {
  const row = rows.get(at.join());
  verdict(row);
  line();
  picture(row);
}

controls();
whenever(draw);
