// The newest scene's tokens: which were sent, and how far each is from usual.
import { html } from "./dom.js";
import { figure } from "./words.js";

const LEVELS = [1, 1.5, 2, 3];

// 0: as usual or closer … 4: three times as far as usual, or more.
const level = (far) => LEVELS.filter((bound) => far >= bound).length;

export function TokenGrid({ grid }) {
  const columns = grid.kept[0].length;
  const count = grid.kept.length * columns;
  const kept = grid.kept.join("").split("1").length - 1;
  let furthest = null;
  grid.far?.forEach((row, y) => row.forEach((far, x) => {
    if (far != null && (furthest === null || far > furthest.far)) furthest = { far, x, y };
  }));
  const said =
    `${kept} of ${count} tokens are known.` +
    (furthest ? ` Furthest from usual: row ${furthest.y + 1}, column ${furthest.x + 1}, ${figure(furthest.far)} times the usual distance.` : "");
  return html`
    <figure class="tokens">
      <figcaption>Tokens of the newest scene</figcaption>
      <div class="grid" role="img" aria-label=${said} style=${{ gridTemplateColumns: `repeat(${columns}, 1fr)` }}>
        ${grid.kept.map((row, y) => [...row].map((bit, x) => {
          const far = grid.far?.[y]?.[x];
          const words = bit === "0" ? "not sent" : far == null ? "sent" : `sent, ${figure(far)} × usual`;
          return html`<span class=${bit === "0" ? "dropped" : `kept far-${far == null ? 0 : level(far)}`} title=${words}></span>`;
        }))}
      </div>
      <p>${said}</p>
      <p class="legend" aria-hidden="true"><span class="key dropped"></span> not sent <span class="key kept far-0"></span> sent
        ${grid.far && html` <span class="key kept far-2"></span> twice as far as usual <span class="key kept far-4"></span> three times or more`}</p>
    </figure>`;
}
