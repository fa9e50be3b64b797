// One device: its newest scene, its last hours, questions and answers.
import { html, useMemo, useSeconds } from "./dom.js";
import { Chart } from "./chart.js";
import { TokenGrid } from "./grid.js";
import { Connection, Fact } from "./parts.js";
import { Question } from "./question.js";
import { useFeed } from "./service.js";
import { ago, belief, bytes, deviceLink, duration, figure, LOSSES, milliseconds, share, state, time } from "./words.js";

const COLUMNS = ["at", "frames", "bytes", "alarms", "risk", "risk_most", "quantize", "dropped_attention", "latent_residual", "unfamiliarity"];

// A message brings the newest slots alone: they replace those of the same time.
function merge(before, message) {
  if (message.whole || before === null) return message;
  const first = message.timeline.at[0] ?? Infinity;
  const until = before.timeline.at.findIndex((at) => at >= first);
  const kept = until < 0 ? before.timeline.at.length : until;
  const timeline = { slot_s: message.timeline.slot_s };
  for (const name of COLUMNS) timeline[name] = [...before.timeline[name].slice(0, kept), ...message.timeline[name]];
  return { ...message, timeline };
}

function Now({ row, silentS }) {
  const { scene, status } = row;
  const { word } = state(row, silentS);
  return html`
    <dl class="facts">
      <${Fact} name="State"><span class="word ${word.replaceAll(" ", "-")}">${word}</span>, heard ${ago(row.heard_at)}<//>
      <${Fact} name="Answers"><span class="word ${row.belief}">${belief(row)}</span> ${row.why}<//>
      <${Fact} name="Newest scene">${scene ? html`${ago(scene.accepted_at)}, ${scene.point}, ${bytes(scene.payload_bytes)}${scene.delta ? ", a change" : ""}` : "none"}<//>
      ${status && html`
        <${Fact} name="On its disk">${status.spool_frames ? `${status.spool_frames} frames, oldest ${duration(status.spool_oldest_s)}` : "empty"}<//>
        <${Fact} name="Power">${status.watts == null ? "not measured" : `${status.watts.toFixed(1)} W`}<//>
        <${Fact} name="Temperature">${status.celsius == null ? "not measured" : `${status.celsius.toFixed(0)} °C`}${status.throttled ? ", throttled" : ""}<//>
        <${Fact} name="Told">${ago(status.at)}<//>`}
    </dl>`;
}

function Timeline({ timeline }) {
  const { at, slot_s: slotS } = timeline;
  const lines = useMemo(() => ({
    risk: [{ name: "mean", values: timeline.risk }, { name: "highest", values: timeline.risk_most }],
    unfamiliarity: [{ name: "mean", values: timeline.unfamiliarity }],
    loss: [{ name: "rounding", values: timeline.quantize }, { name: "dropped tokens", values: timeline.dropped_attention }],
    bytes: [{ name: "bytes", values: timeline.bytes }],
    alarms: [{ name: "alarms", values: timeline.alarms }],
  }), [timeline]);
  if (at.length === 0) return html`<p>Nothing came in the last hours.</p>`;
  const chart = (title, which, more = {}) => html`<${Chart} title=${title} at=${at} slotS=${slotS} lines=${lines[which]} ...${more} />`;
  return html`<div class="charts">
    ${chart("Risk", "risk", { say: share })}
    ${chart("Unfamiliarity (about 1 is usual)", "unfamiliarity")}
    ${chart("Losses on the device", "loss")}
    ${chart(`Payload, bytes in ${slotS} s`, "bytes", { bars: true, say: bytes })}
    ${chart(`Alarms in ${slotS} s`, "alarms", { bars: true })}
  </div>`;
}

export function Device({ at, session, expired }) {
  const [name, tenant] = [at.device, at.tenant].map(encodeURIComponent);
  const feed = useFeed(`/v1/live/events?device=${name}&tenant=${tenant}`, `/v1/live/devices/${name}?tenant=${tenant}`, "device", merge);
  useSeconds();
  document.title = `${at.device} – Neural Bridge`;
  const { data } = feed;
  return html`
    <nav aria-label="Path"><a href="#/">Fleet</a></nav>
    <h1>${at.device}</h1>
    <${Connection} feed=${feed} expired=${expired} />
    ${data && html`
      <${Now} row=${data.row} silentS=${data.silent_s} />
      <section aria-labelledby="ask-title" class="panel"><h2 id="ask-title">Question</h2>
        <${Question} row=${data.row} mayAsk=${session.may_ask} expired=${expired} /></section>
      <section aria-labelledby="scene-title" class="panel"><h2 id="scene-title">Newest scene</h2>
        ${data.grid ? html`<${TokenGrid} grid=${data.grid} />` : html`<p>${data.row.scene ? "It is a picture: it has no tokens that were chosen." : "None is held."}</p>`}
        ${data.distortion && html`<dl class="facts">${Object.entries(LOSSES).map(([name, words]) => html`<${Fact} key=${name} name=${words}>${figure(data.distortion[name])}<//>`)}</dl>`}
      </section>
      <section aria-labelledby="time-title" class="panel"><h2 id="time-title">Last hours</h2><${Timeline} timeline=${data.timeline} /></section>
      <section aria-labelledby="requests-title" class="panel"><h2 id="requests-title">Newest requests</h2>
        ${data.requests.length === 0 ? html`<p>None yet.</p>` : html`
        <table class="requests">
          <caption class="hidden">Newest requests about this device, the newest first</caption>
          <thead><tr><th scope="col">Time</th><th scope="col">Question</th><th scope="col">Answer</th><th scope="col" class="wide">Asked by</th><th scope="col" class="wide">Risk</th><th scope="col" class="wide">Took</th></tr></thead>
          <tbody>${data.requests.map((one) => html`
            <tr key=${one.id}>
              <th scope="row"><a href=${`${deviceLink(data.row)}/request/${one.id}`}>${time(one.at)}</a></th>
              <td>${one.question || html`<em>none: a scene to hold</em>`}</td>
              <td>${one.refused ? html`<span class="word doubted">${one.refused}</span>` : one.answer || "–"}</td>
              <td class="wide">${one.asked_by}</td>
              <td class="number wide">${one.risk == null ? "–" : share(one.risk)}</td>
              <td class="number wide">${milliseconds(one.total_ms)}</td>
            </tr>`)}</tbody>
        </table>`}
      </section>`}`;
}
