// A bar a device, stacked by what it does.
function timeBars(id, parts) {
  const places = data.places.filter(place => parts.some(part => part[1] === place));
  const scale = parts.reduce((sum, part) => sum + part[2], 0) >= 1 ? 1 : 1e3;
  const traces = data.what.filter(([what]) => parts.some(part => part[0] === what)).map(([what, color]) => ({
    type: 'bar', orientation: 'h', name: what, y: places, marker: { color },
    x: places.map(place => parts.filter(part => part[0] === what && part[1] === place).reduce((sum, part) => sum + scale * part[2], 0)),
    hovertemplate: `%{y}: %{x:.3g} ${scale === 1 ? 's' : 'ms'} of ${what}<extra></extra>`,
  }));
  chart(id, traces, {
    height: 110 + 26 * places.length, xaxis: { title: { text: scale === 1 ? 's' : 'ms', standoff: 4 } }, yaxis: { autorange: 'reversed' },
  }, `Time by device: ${places.join(', ')}`);
}

function peerBars() {
  const fit = data.peers.filter(peer => peer[1] !== null);
  chart('peers', [{
    type: 'bar', orientation: 'h', y: fit.map(peer => plain(peer[0])), x: fit.map(peer => peer[1]),
    marker: { color: fit.map(peer => (peer === data.peers[0] ? '#0072b2' : '#999999')) }, hovertemplate: '%{y}: %{x:.4g} s<extra></extra>',
  }], {
    height: 70 + 26 * fit.length, showlegend: false, yaxis: { autorange: 'reversed' },
    xaxis: { title: { text: `${data.objective}, s: shorter is better`, standoff: 4 } },
  }, `${data.objective} of ${fit.length} layouts that fit`);
}

whenever(() => {
  layerMap('map', data.plan);
  memoryBars('memory', data.plan.memory);
  timeBars('prefill', data.prefill);
  timeBars('decode', data.decode);
  peerBars();
});
