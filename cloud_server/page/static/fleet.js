// The fleet: who is alive, how old its newest scene is, whether it can be believed.
import { html, Component, useSeconds, useState } from "./dom.js";
import { Connection } from "./parts.js";
import { useFeed } from "./service.js";
import { ago, belief, deviceLink, duration, share, state } from "./words.js";

function merge(before, message) {
  const rows = message.whole || before === null ? new Map() : new Map(before.rows);
  for (const row of message.rows) rows.set(`${row.tenant}/${row.device}`, row);
  const left = message.whole ? message.left_out : before.left_out;
  return { rows, silentS: message.silent_s, leftOut: left };
}

// Drawn again only when its row or its ages change.
class Row extends Component {
  shouldComponentUpdate(next) {
    return next.row !== this.props.row || next.age !== this.props.age || next.word !== this.props.word || next.tenants !== this.props.tenants;
  }

  render({ row, age, word, tenants }) {
    const { scene, status } = row;
    return html`
      <tr data-scene=${scene?.id} data-at=${scene?.accepted_at} class=${word === "silent" ? "silent" : ""}>
        <th scope="row"><a href=${deviceLink(row)}>${row.device}</a></th>
        ${tenants && html`<td>${row.tenant}</td>`}
        <td><span class="word ${word.replaceAll(" ", "-")}">${word}</span></td>
        <td class="number">${age}</td>
        <td><span class="word ${row.belief}" title=${row.why}>${belief(row)}</span></td>
        <td class="number wide">${scene ? share(scene.risk) : "–"}</td>
        <td class="number wide">${!status ? "–" : status.spool_frames ? `${status.spool_frames} frames, ${duration(status.spool_oldest_s)}` : "empty"}</td>
        <td class="number wide">${status?.watts == null ? "–" : `${status.watts.toFixed(1)} W`}</td>
        <td class="number wide">${status?.celsius == null ? "–" : `${status.celsius.toFixed(0)} °C${status.throttled ? ", throttled" : ""}`}</td>
      </tr>`;
  }
}

export function Fleet({ session, expired }) {
  const [tenant, setTenant] = useState("");
  const [begins, setBegins] = useState("");
  const [only, setOnly] = useState(false);
  const feed = useFeed(tenant ? `/v1/live/events?tenant=${tenant}` : "/v1/live/events", "/live/session", "fleet", merge);
  useSeconds();
  document.title = "Fleet – Neural Bridge";
  const silentS = feed.data?.silentS ?? 0;
  const all = [...(feed.data?.rows.values() ?? [])].map((row) => ({ row, ...state(row, silentS) }));
  const shown = all
    .filter(({ row, attention }) => row.device.startsWith(begins) && (!only || attention < 3))
    .sort((a, b) => a.attention - b.attention || a.row.tenant.localeCompare(b.row.tenant) || a.row.device.localeCompare(b.row.device));
  const count = (word) => all.filter((one) => one.word === word).length;
  const doubted = all.filter(({ row, word }) => word === "alive" && row.belief === "doubted").length;
  const tenants = session.tenants.length > 1 && !tenant;
  return html`
    <h1>Fleet</h1>
    <${Connection} feed=${feed} expired=${expired} />
    ${feed.data && html`
      <p class="summary">
        <strong>${all.length}</strong> devices: <strong>${count("alive")}</strong> alive, <strong>${count("silent")}</strong> silent,
        ${" "}<strong>${count("not heard yet")}</strong> not heard yet. <strong>${doubted}</strong> alive but doubted.
        ${feed.data.leftOut > 0 && html` <strong>${feed.data.leftOut}</strong> more are not shown: choose a tenant.`}
      </p>
      <form class="filters" onSubmit=${(event) => event.preventDefault()}>
        ${session.tenants.length > 1 && html`
          <label>Tenant <select value=${tenant} onChange=${(event) => setTenant(event.target.value)}>
            <option value="">all</option>
            ${session.tenants.map((name) => html`<option value=${name}>${name}</option>`)}
          </select></label>`}
        <label>Name begins with <input type="search" value=${begins} onInput=${(event) => setBegins(event.target.value)} /></label>
        <label class="check"><input type="checkbox" checked=${only} onChange=${(event) => setOnly(event.target.checked)} /> only those that need a look</label>
      </form>
      <table class="fleet">
        <caption>Devices, those that need a look first</caption>
        <thead><tr>
          <th scope="col">Device</th>
          ${tenants && html`<th scope="col">Tenant</th>`}
          <th scope="col">State</th>
          <th scope="col">Newest scene</th>
          <th scope="col">Answers</th>
          <th scope="col" class="wide">Risk</th>
          <th scope="col" class="wide">On its disk</th>
          <th scope="col" class="wide">Power</th>
          <th scope="col" class="wide">Temperature</th>
        </tr></thead>
        <tbody>
          ${shown.map(({ row, word }) => html`<${Row} key=${`${row.tenant}/${row.device}`} row=${row} word=${word} tenants=${tenants} age=${ago(row.scene?.accepted_at)} />`)}
        </tbody>
      </table>
      ${all.length === 0 && html`<p>There are no devices yet. Add one with <code>cloud-server devices add</code>.</p>`}`}`;
}
