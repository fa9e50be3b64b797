// One request: where its time went, what each stage lost, how far to believe its answer.
import { html, useEffect, useState } from "./dom.js";
import { Fact } from "./parts.js";
import { look } from "./service.js";
import { bytes, figure, LOSSES, milliseconds, share, STAGES, time } from "./words.js";

const percent = (part, whole) => `${whole > 0 ? Math.min(100, (100 * part) / whole).toFixed(2) : 0}%`;

function Waterfall({ found }) {
  // Stages are measured by another process: together they may exceed the whole by a little.
  const whole = Math.max(found.total_ms, ...found.stages.map((stage) => stage.begins_ms + stage.ms));
  return html`
    <table class="waterfall">
      <caption>Stages in the service: ${milliseconds(found.total_ms)} in all${found.first_token_ms == null ? "" : `, first word after ${milliseconds(found.first_token_ms)}`}</caption>
      <thead><tr><th scope="col">Stage</th><th scope="col">Took</th><th scope="col"><span class="hidden">When</span></th></tr></thead>
      <tbody>${found.stages.map((stage) => html`
        <tr key=${stage.name}>
          <th scope="row">${STAGES[stage.name] ?? stage.name}</th>
          <td class="number">${milliseconds(stage.ms)}</td>
          <td class="bar" aria-hidden="true"><span style=${{ marginLeft: percent(stage.begins_ms, whole), width: percent(stage.ms, whole) }}></span></td>
        </tr>`)}</tbody>
    </table>`;
}

function Bytes({ found }) {
  if (!found.payload_bytes) return html`<p>The question was about a scene that the service held already: no picture data travelled.</p>`;
  if (found.point === "picture") return html`<p>The picture itself travelled: ${bytes(found.payload_bytes)}.</p>`;
  if (found.picture_bytes == null)
    return html`<p><strong>${bytes(found.payload_bytes)}</strong> travelled${found.delta ? " (a change to an earlier scene)" : ""}. No picture of this device was seen yet, so there is nothing to compare with.</p>`;
  return html`
    <p><strong>${bytes(found.payload_bytes)}</strong> travelled${found.delta ? " (a change to an earlier scene)" : ""}; a picture of this device has ${bytes(found.picture_bytes)}: <strong>${Math.round(found.picture_bytes / found.payload_bytes)} times</strong> as much.</p>
    <div class="compare" aria-hidden="true"><span style=${{ width: percent(found.payload_bytes, found.picture_bytes) }}></span></div>`;
}

function Losses({ found }) {
  if (found.distortion.length === 0) return html`<p>A picture loses nothing on the device.</p>`;
  return html`
    <table class="losses">
      <caption>What each stage lost. Limit: the value at which the risk would reach its own limit, the rest unchanged</caption>
      <thead><tr><th scope="col">Stage</th><th scope="col">Lost</th><th scope="col">Usual</th><th scope="col">Limit</th><th scope="col"><span class="hidden">Share of the limit</span></th></tr></thead>
      <tbody>${found.distortion.map((loss) => {
        const over = loss.limit != null && loss.value > loss.limit;
        return html`
          <tr key=${loss.name} class=${over ? "over" : ""}>
            <th scope="row">${LOSSES[loss.name]}</th>
            <td class="number">${figure(loss.value)}${over ? " (over)" : ""}</td>
            <td class="number">${figure(loss.usual)}</td>
            <td class="number">${loss.limit == null ? "none" : figure(loss.limit)}</td>
            <td class="bar" aria-hidden="true">${loss.limit != null && html`<span style=${{ width: percent(loss.value, loss.limit) }}></span>`}</td>
          </tr>`;
      })}</tbody>
    </table>`;
}

function Picture({ found }) {
  if (!found.has_picture) return null;
  const path = `/v1/live/devices/${encodeURIComponent(found.device)}/requests/${found.id}/picture?tenant=${encodeURIComponent(found.tenant)}`;
  return html`<section class="panel" aria-labelledby="picture-title"><h2 id="picture-title">Picture</h2>
    <img class="shadowed" src=${path} alt="What the camera saw: the device also sent this picture" /></section>`;
}

export function Request({ at, expired }) {
  const [found, setFound] = useState(null);
  const [failed, setFailed] = useState("");
  document.title = `Request of ${at.device} – Neural Bridge`;
  useEffect(() => {
    look(`/v1/live/devices/${encodeURIComponent(at.device)}/requests/${at.id}?tenant=${encodeURIComponent(at.tenant)}`).then(setFound, (error) => {
      if (error.status === 401) expired();
      else setFailed(error.status === 404 ? "This request is not kept any more: the page keeps the newest of each device." : error.message);
    });
  }, [at.id]);
  return html`
    <nav aria-label="Path"><a href="#/">Fleet</a> / <a href=${`#/device/${at.tenant}/${at.device}`}>${at.device}</a></nav>
    <h1>Request</h1>
    ${failed && html`<div class="banner bad" role="alert">${failed}</div>`}
    ${!found && !failed && html`<p class="banner" role="status">Loading…</p>`}
    ${found && html`
      <dl class="facts">
        <${Fact} name="At">${time(found.at)}, by ${found.asked_by}<//>
        <${Fact} name="Question">${found.question || html`<em>none: a scene to hold</em>`}<//>
        <${Fact} name="Answer">${found.refused ? html`<span class="word doubted">refused: ${found.refused}</span> ${found.why_refused}` : found.answer || "–"}<//>
        <${Fact} name="Risk">${found.risk == null ? html`not known${found.risk_unknown && `: ${found.risk_unknown}`}` : html`<span class="word ${found.risk_limit != null && found.risk > found.risk_limit ? "doubted" : "believed"}">${share(found.risk)}</span>${found.risk_limit == null ? "" : `, limit ${share(found.risk_limit)}`}`}<//>
        ${found.fallback && html`<${Fact} name="Cause">the device sent the picture: ${found.fallback}<//>`}
        ${found.warnings.length > 0 && html`<${Fact} name="Warnings">${found.warnings.join(", ")}<//>`}
        <${Fact} name="Id"><code>${found.id}</code><//>
      </dl>
      <section class="panel" aria-labelledby="time-title"><h2 id="time-title">Time</h2><${Waterfall} found=${found} /></section>
      <section class="panel" aria-labelledby="bytes-title"><h2 id="bytes-title">Bytes</h2><${Bytes} found=${found} /></section>
      <section class="panel" aria-labelledby="losses-title"><h2 id="losses-title">Losses</h2><${Losses} found=${found} /></section>
      <${Picture} found=${found} />`}`;
}
