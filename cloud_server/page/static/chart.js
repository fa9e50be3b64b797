// One chart over time (uPlot draws it), with the same figures as a table for whoever cannot see it.
import { html, useEffect, useRef, useState } from "./dom.js";
import { figure, time } from "./words.js";

const SHOWN_IN_TABLE = 12;
const LEAST_S = 600; // of time that a chart covers

function colours() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(["text", "line", "one", "two"].map((name) => [name, style.getPropertyValue(`--chart-${name}`).trim()]));
}

// Times and values with a gap wherever a slot is missing.
function withGaps(at, lines, slotS) {
  const times = [];
  const values = lines.map(() => []);
  at.forEach((when, index) => {
    if (index && when - at[index - 1] > slotS) {
      times.push(at[index - 1] + slotS);
      values.forEach((list) => list.push(null));
    }
    times.push(when);
    values.forEach((list, line) => list.push(lines[line].values[index]));
  });
  return [times, ...values];
}

// By the data: uPlot gives a single point a span of years.
function spanned(slotS) {
  return ({ data: [times] }) => [times[0] - slotS, Math.max(times.at(-1), times[0] + LEAST_S) + slotS];
}

export function Chart({ title, at, slotS, lines, bars = false, say = figure }) {
  const place = useRef(null);
  const plot = useRef(null);
  const [scheme, setScheme] = useState(0);
  useEffect(() => {
    const query = matchMedia("(prefers-color-scheme: dark)");
    const changed = () => setScheme((before) => before + 1);
    query.addEventListener("change", changed);
    return () => query.removeEventListener("change", changed);
  }, []);
  useEffect(() => {
    const box = place.current;
    if (box === null) return undefined; // the view has gone already
    const { text, line, one, two } = colours();
    const axis = { stroke: text, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
    const size = () => ({ width: Math.max(200, box.clientWidth), height: 160 });
    const made = new globalThis.uPlot(
      {
        ...size(),
        cursor: { drag: { x: false, y: false } },
        legend: { show: lines.length > 1 },
        scales: { x: { range: spanned(slotS) }, y: { range: (_, low, high) => [Math.min(0, low ?? 0), (high ?? 0) || 1] } },
        axes: [{ ...axis, space: 70 }, { ...axis, size: 60, values: (_, ticks) => ticks.map(say) }],
        series: [
          {},
          ...lines.map((each, index) => ({
            label: each.name,
            stroke: index ? two : one,
            width: 2,
            spanGaps: false,
            points: { show: at.length < 3, size: 6 },
            value: (_, value) => (value == null ? "–" : say(value)),
            ...(bars ? { paths: globalThis.uPlot.paths.bars({ size: [0.9, 40] }), fill: one, points: { show: false } } : {}),
          })),
        ],
      },
      withGaps(at, lines, slotS),
      box,
    );
    plot.current = made;
    const watcher = new ResizeObserver(() => made.setSize(size()));
    watcher.observe(box);
    return () => {
      watcher.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [scheme, at.length < 3]);
  useEffect(() => plot.current?.setData(withGaps(at, lines, slotS)), [at, lines]);
  const known = lines[0].values.filter((value) => value != null);
  const newest = lines[0].values.at(-1);
  const summary = known.length
    ? `${title}: newest ${newest == null ? "not measured" : say(newest)}, lowest ${say(Math.min(...known))}, highest ${say(Math.max(...known))}`
    : `${title}: nothing was measured`;
  const from = Math.max(0, at.length - SHOWN_IN_TABLE);
  return html`
    <figure class="chart">
      <figcaption>${title}</figcaption>
      <div role="img" aria-label=${summary} ref=${place}></div>
      <details>
        <summary>${title}, as a table</summary>
        <table>
          <thead><tr><th scope="col">From</th>${lines.map((each) => html`<th scope="col">${each.name}</th>`)}</tr></thead>
          <tbody>${at.slice(from).map((when, index) => html`
            <tr key=${when}><th scope="row">${time(when)}</th>${lines.map((each) => {
              const value = each.values[from + index];
              return html`<td class="number">${value == null ? "–" : say(value)}</td>`;
            })}</tr>`)}</tbody>
        </table>
      </details>
    </figure>`;
}
