'use strict';
// What both pages draw. Text from plans goes into the page through textContent, into charts through plain().

const data = JSON.parse(document.getElementById('data').textContent);
const ATTENTION = 1.1, TOP = 1.6;
const byId = id => document.getElementById(id);
const plain = text => String(text).replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;');
const expand = runs => runs.flatMap(([what, times]) => Array(times).fill(what));
const digits = (value, most = 3) => value.toLocaleString('en', { maximumSignificantDigits: most });
const gigabytes = bytes => (bytes / 1e9).toLocaleString('en', { minimumFractionDigits: 2, maximumFractionDigits: 2 }) + ' GB';
const seconds = value => (value >= 1 ? `${digits(value, 4)} s` : `${digits(1e3 * value, 4)} ms`);
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const shortName = device => device.replace('cuda:', '');

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
  return made;
}

// A chart fills its figure, follows the page's colours, and says in words what it shows.
function chart(id, traces, layout, says) {
  const figure = byId(id);
  const axis = { gridcolor: colour('--line'), zerolinecolor: colour('--line'), linecolor: colour('--line'), automargin: true, fixedrange: true };
  const whole = {
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', font: { color: colour('--ink'), size: 12 },
    margin: { l: 8, r: 12, t: 8, b: 8 }, barmode: 'stack', bargap: 0.25, showlegend: true,
    legend: { orientation: 'h', y: -50 / (layout.height - 100), yanchor: 'top', x: 0, traceorder: 'normal' }, hoverlabel: { align: 'left' },
    ...layout, xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
  };
  Plotly.react(figure, traces, whole, { displayModeBar: false, responsive: true });
  figure.setAttribute('role', 'img');
  figure.setAttribute('aria-label', says);
}

// Black or white, whichever can be read on a colour.
function ink(hex) {
  const [red, green, blue] = [1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16));
  return 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? '#000000' : '#ffffff';
}

function layerMap(id, plan) {
  const attention = expand(plan.attention), experts = expand(plan.experts), layers = attention.length;
  const cells = Object.fromEntries(plan.devices.map(device => [device, { x: [], y: [], base: [], text: [] }]));
  const put = (device, x, base, y, text) => {
    const mine = cells[device];
    mine.x.push(x); mine.base.push(base); mine.y.push(y); mine.text.push(`${text} on ${device}`);
  };
  put(plan.embedding, -1, 0, TOP, 'embedding');
  attention.forEach((device, layer) => put(device, layer, ATTENTION, TOP - ATTENTION, `layer ${layer}: attention`));
  experts.forEach((parts, layer) => {
    let base = 0;
    for (const [device, share] of parts) {
      put(device, layer, base, share, `layer ${layer}: ${share < 1 ? `${digits(100 * share, 2)}% of ` : ''}experts`);
      base += share;
    }
  });
  put(plan.head, layers, 0, TOP, 'head');
  const traces = plan.devices.filter(device => cells[device].x.length).map(device => ({
    type: 'bar', name: device, ...cells[device], width: 1, textposition: 'none', hovertemplate: '%{text}<extra></extra>',
    marker: {
      color: data.colours[device], line: { color: colour('--card'), width: 0.5 },
      pattern: { shape: device === 'cpu' ? '/' : '', fgcolor: colour('--card'), fillmode: 'overlay', size: 6, solidity: 0.2 },
    },
  }));
  const held = traces.map(trace => trace.name).join(', ');
  chart(id, traces, {
    barmode: 'overlay', bargap: 0, height: 230, annotations: names(plan.attention, layers),
    xaxis: { title: { text: 'layer', standoff: 4 }, range: [-1.6, layers + 0.6], showgrid: false, zeroline: false },
    yaxis: { range: [0, TOP], tickvals: [0.5, (ATTENTION + TOP) / 2], ticktext: ['experts', 'attention'], showgrid: false, zeroline: false },
  }, `Layer map of ${layers} layers on ${held}`);
}

// The device's name on each run of attention that has room for it.
function names(runs, layers) {
  let first = 0;
  return runs.map(([device, times]) => {
    const x = first + (times - 1) / 2;
    first += times;
    return times / layers > 0.03 * shortName(device).length
      ? { x, y: (ATTENTION + TOP) / 2, text: shortName(device), showarrow: false, font: { size: 11, color: ink(data.colours[device]) } }
      : null;
  }).filter(Boolean);
}

// Weights, cache and workspace as shares of what may be used; beyond 100 % nothing fits.
function memoryBars(id, memory) {
  const devices = Object.keys(memory);
  const used = devices.map(device => memory[device].slice(0, 3).reduce((a, b) => a + b, 0));
  const share = (bytes, at) => 100 * bytes / Math.max(1, memory[devices[at]][3]);
  const traces = data.parts.map(([name, color], part) => ({
    type: 'bar', orientation: 'h', name, y: devices, x: devices.map((device, at) => share(memory[device][part], at)),
    customdata: devices.map(device => gigabytes(memory[device][part])), marker: { color },
    hovertemplate: `%{y}: %{customdata} of ${name}<extra></extra>`,
  }));
  const most = Math.max(100, ...used.map(share));
  const over = devices.filter((device, at) => used[at] > memory[device][3]);
  const excess = over.map(device => ({
    x: 99, y: device, xanchor: 'right', showarrow: false, font: { color: '#ffffff' },
    text: `<b>${gigabytes(used[devices.indexOf(device)] - memory[device][3])} too much</b>`,
  }));
  chart(id, traces, {
    height: 110 + 26 * devices.length,
    xaxis: { title: { text: '% of usable memory', standoff: 4 }, range: [0, most * 1.02] },
    yaxis: { autorange: 'reversed' }, annotations: excess,
    shapes: [{ type: 'line', x0: 100, x1: 100, y0: 0, y1: 1, yref: 'paper', line: { color: colour('--ink'), width: 2 } }],
  }, over.length ? `Memory: ${over.join(', ')} overflow` : `Memory of ${devices.length} devices; all fit`);
}

// Draws now, and again when the reader's colours change.
function whenever(draw) {
  draw();
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
  document.body.dataset.ready = 'true';
}
