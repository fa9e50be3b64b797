// Ask something about the device's newest scene, and see the answer come.
import { html, useRef, useState } from "./dom.js";
import { ask } from "./service.js";
import { deviceLink, milliseconds, share } from "./words.js";

export function Question({ row, mayAsk, expired }) {
  const [text, setText] = useState("");
  const [answer, setAnswer] = useState("");
  const [told, setTold] = useState(null);
  const [failed, setFailed] = useState("");
  const stop = useRef(null);
  if (!mayAsk) return html`<p>This key may look, but not ask (it lacks the scope <code>ask</code>).</p>`;
  if (!row.scene) return html`<p>There is no scene to ask about.</p>`;
  async function submit(event) {
    event.preventDefault();
    stop.current?.abort();
    const mine = (stop.current = new AbortController());
    setAnswer("");
    setTold(null);
    setFailed("");
    try {
      const fidelity = await ask(row, text, (piece) => setAnswer((before) => before + piece), mine.signal);
      setTold(fidelity);
    } catch (error) {
      if (mine.signal.aborted) return;
      if (error.status === 401) expired();
      setFailed(error.message);
    } finally {
      if (stop.current === mine) stop.current = null;
    }
  }
  return html`
    <form class="question" onSubmit=${submit}>
      <label for="question">Ask about the newest scene</label>
      <div><input id="question" required maxlength="512" value=${text} onInput=${(event) => setText(event.target.value)} />
      <button type="submit">Ask</button></div>
      <output for="question" aria-live="polite" class="answer">${answer}</output>
      ${told && html`<p class="fidelity">
        ${told.risk == null ? html`Risk not known: ${told.risk_unknown}.` : html`Risk of a different answer than from the picture: <strong>${share(told.risk)}</strong>.`}
        ${told.fallback && html` The device sent the picture: ${told.fallback}.`}
        ${told.warnings.length > 0 && html` Warnings: ${told.warnings.join(", ")}.`}
        ${told.timings_ms && html` ${milliseconds(told.timings_ms.total)}.`}
        ${" "}<a href=${`${deviceLink(row)}/request/${told.request}`}>Where the time went</a></p>`}
      ${failed && html`<p class="banner bad" role="alert">${failed}</p>`}
    </form>`;
}
