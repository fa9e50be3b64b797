// Small parts that several views share.
import { html, useEffect } from "./dom.js";
import { time } from "./words.js";

// Says plainly that what is shown is old, and why.
export function Connection({ feed, expired }) {
  useEffect(() => {
    if (feed.status === "expired") expired();
  }, [feed.status]);
  if (feed.status === "connecting") return html`<p class="banner" role="status">Connecting…</p>`;
  if (feed.status === "lost")
    return html`<div class="banner bad" role="alert"><strong>The service does not answer</strong> since ${time(feed.since / 1000)}. What you see is from before. Trying again every 3 seconds.</div>`;
  if (feed.status === "refused") return html`<div class="banner bad" role="alert">${feed.why}</div>`;
  return null;
}

// A figure and its unit, or a dash.
export const Fact = ({ name, children }) => html`<div class="fact"><dt>${name}</dt><dd>${children}</dd></div>`;
