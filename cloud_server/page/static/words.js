// Figures in words.

// The service's clock, seconds since 1970, as the newest message told it.
let ahead = 0;
export const heardClock = (now) => { ahead = now - Date.now() / 1000; };
export const clock = () => Date.now() / 1000 + ahead;

export function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

export const ago = (at) => (at == null ? "never" : `${duration(clock() - at)} ago`);
export const time = (at) => new Date(at * 1000).toLocaleTimeString();
export const share = (value) => (value == null ? "unknown" : `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %`);
export const figure = (value) => (value == null ? "–" : Number(value.toPrecision(3)).toString());
export const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

export function bytes(value) {
  if (value == null) return "–";
  if (value < 10000) return `${Math.round(value).toLocaleString("en")} B`;
  if (value < 1e7) return `${(value / 1e3).toFixed(1)} kB`;
  return `${(value / 1e6).toFixed(1)} MB`;
}

const BELIEFS = {
  believed: "believed",
  doubted: "doubted",
  picture: "from the picture",
  unknown: "not known",
  none: "no scene",
};
export const belief = (row) => BELIEFS[row.belief] ?? row.belief;

// How a device is: the word, and whether someone has to look.
export function state(row, silentS) {
  if (!row.enabled) return { word: "disabled", attention: 2 };
  if (row.attends) return { word: "alive", attention: row.belief === "doubted" ? 1 : 3 };
  if (row.heard_at == null) return { word: "not heard yet", attention: 1 };
  if (clock() - row.heard_at > silentS) return { word: "silent", attention: 0 };
  return { word: "alive", attention: row.belief === "doubted" ? 1 : 3 };
}

export const LOSSES = {
  quantize: "Rounding (quantize)",
  dropped_attention: "Dropped tokens (attention)",
  latent_residual: "Projection (latent residual)",
  unfamiliarity: "Unlike calibration (unfamiliarity)",
};

export const STAGES = {
  queue: "Waited in the queue",
  decode: "Decoded",
  project: "Projected",
  inject: "Injected",
  prefill: "Read the question",
  generate: "Generated the answer",
  rest: "Between stages",
};

export const deviceLink = (row) => `#/device/${row.tenant}/${row.device}`;
