// From a model's key-value cache to a frame's payload: FROM THE CACHE TO LATENTS in bridge.proto.

import { readTensors } from "./tensors.mjs";

const f32 = Math.fround;

// ------------------------------------------------------------------------------------- the cache

/**
 * One picture's cache, as a model left it: keys rotated.
 *
 * @param {Buffer} file what `python -m examples.node.export_state` wrote
 * @returns the layout (as text and as an object), its tokens' states x `[N][d_s]`, their un-rotated
 *   keys `[layers * kv_heads][N]`, and the attention that they received
 */
export function readState(file) {
  const { tensors, metadata } = readTensors(file);
  const layout = JSON.parse(metadata.source_layout_json);
  const { layers, kv_heads: heads, head_dim: dim } = layout;
  const [keys, values] = ["keys", "values"].map((name) => tensors.get(name).data);
  const positions = tensors.get("positions").data;
  const attention = tensors.get("attention").data;
  const tokens = positions.length;
  const unrotated = [];
  const states = Array.from({ length: tokens }, () => new Float32Array(2 * layers * heads * dim));
  for (let layer = 0, row = 0; layer < layers; layer++) {
    const rope = ropeOf(layout, layer);
    for (let head = 0; head < heads; head++, row++) {
      unrotated.push([]);
      for (let t = 0; t < tokens; t++) {
        const at = (row * tokens + t) * dim;
        const key = unrotate(keys.subarray(at, at + dim), rope, positions[t]);
        unrotated[row].push(key);
        states[t].set(key, row * dim);
        states[t].set(values.subarray(at, at + dim), (layers * heads + row) * dim);
      }
    }
  }
  return { layoutJson: metadata.source_layout_json, layout, states, keys: unrotated, attention };
}

function ropeOf(layout, layer) {
  const which = layout.layer_ropes?.[layer] ?? 0;
  return which ? layout.more_ropes[which - 1] : layout.rope;
}

/** A key without its rotation. */
export function unrotate(key, rope, position) {
  const out = Float32Array.from(key);
  const half = rope.rotary_dim / 2;
  for (let i = 0; i < half; i++) {
    const angle = f32(position * f32(rope.inv_freq[i]));
    const [first, second] = rope.interleaved ? [2 * i, 2 * i + 1] : [i, i + half];
    const cos = f32(Math.cos(angle) / rope.attention_factor);
    const sin = f32(Math.sin(angle) / rope.attention_factor);
    const [a, b] = [key[first], key[second]];
    out[first] = f32(a * cos) + f32(b * sin);
    out[second] = f32(b * cos) - f32(a * sin);
  }
  return out;
}

// ------------------------------------------------------------------------------ the encoder's file

/** @param {Buffer} file what FetchEncoder sent; its SHA-256 has been checked */
export function readEncoder(file) {
  const { tensors, metadata } = readTensors(file);
  const plain = JSON.parse(metadata.neural_bridge_encoder);
  if (plain.format !== 4 || plain.text) {
    throw new Error(`an encoder of format ${plain.format}${plain.text ? ", for texts" : ""}`);
  }
  const get = (name) => tensors.get(name).data;
  const [stateDim, rank] = tensors.get("projection").shape;
  return { fingerprint: plain.source_fingerprint, selector: plain.selector, stateDim, rank, get };
}

// ------------------------------------------------------------------------------- which tokens go

const unit = (vector) => {
  const size = Math.sqrt(vector.reduce((sum, v) => sum + v * v, 0));
  return Array.from(vector, (v) => (size ? v / size : 0));
};

const SCORES = {
  symmetric_focus: ({ attention }) => Array.from(attention),
  key_diversity: ({ keys, states }) => {
    const cosine = new Array(states.length).fill(0);
    for (const head of keys) {
      const units = head.map(unit);
      const sums = units[0].map((_, d) => units.reduce((sum, key) => sum + key[d], 0));
      const mean = unit(sums);
      units.forEach((key, t) => (cosine[t] += key.reduce((sum, v, d) => sum + v * mean[d], 0)));
    }
    return cosine.map((sum) => 1 - sum / keys.length);
  },
};

/** @returns {boolean[]} one for each token: all, or the `budget` that score highest */
export function keep(state, encoder, budget) {
  const tokens = state.states.length;
  if (!budget || budget >= tokens) return new Array(tokens).fill(true);
  const score = SCORES[encoder.selector];
  if (!score) throw new Error(`no selector '${encoder.selector}' here: choose a point that keeps all`);
  const scores = score(state);
  const best = scores.map((_, t) => t).sort((a, b) => scores[b] - scores[a] || a - b);
  const kept = new Array(tokens).fill(false);
  for (const t of best.slice(0, budget)) kept[t] = true;
  return kept;
}

// ------------------------------------------------------------------------------------- FP8 E4M3FN

const FP8_VALUES = Array.from({ length: 128 }, (_, code) => {
  const [exponent, mantissa] = [code >> 3, code & 7];
  return exponent ? (1 + mantissa / 8) * 2 ** (exponent - 7) : (mantissa / 8) * 2 ** -6;
}).slice(0, 127); // 0x7f is NaN; the largest number is 448

/** The byte of the nearest E4M3FN number, the even one in a tie; beyond 448 that is 448. */
export function toFp8(x) {
  const size = Math.abs(x);
  let [low, high] = [0, FP8_VALUES.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (FP8_VALUES[middle] <= size) low = middle;
    else high = middle;
  }
  const [down, up] = [size - FP8_VALUES[low], FP8_VALUES[high] - size];
  const code = down < up || (down === up && low % 2 === 0) ? low : high;
  return code | (x < 0 || Object.is(x, -0) ? 128 : 0);
}

export const fromFp8 = (byte) => FP8_VALUES[byte & 127] * (byte & 128 ? -1 : 1);

// -------------------------------------------------------------------------------------- one frame

const norm = (rows) => Math.sqrt(rows.reduce((sum, row) => sum + row.reduce((s, v) => s + v * v, 0), 0));
const minus = (a, b) => a.map((row, t) => row.map((v, j) => v - b[t][j]));

/** Rows `[T][from]` times a matrix `[from, to]`, in float64. */
function times(rows, matrix, to) {
  return rows.map((row) => {
    const out = new Array(to).fill(0);
    row.forEach((v, i) => {
      for (let j = 0; j < to; j++) out[j] += v * matrix[i * to + j];
    });
    return out;
  });
}

/**
 * Select, project, quantize, and measure what was lost.
 *
 * @param point an operating point with the quantizer fp8_e4m3
 * @returns {{kept: boolean[], body: Buffer, figures: number[]}}
 */
export function encodeState(state, encoder, point) {
  if (point.quantizer !== "fp8_e4m3") throw new Error(`point ${point.name} uses ${point.quantizer}`);
  const { stateDim, rank, get } = encoder;
  if (state.states[0].length !== stateDim) {
    throw new Error(`the encoder expects d_s=${stateDim}, the state has ${state.states[0].length}`);
  }
  const [mean, scale, centre] = ["x_mean", "x_scale", "centre"].map(get);
  const normalise = (rows) => rows.map((x) => Array.from(x, (v, i) => f32(f32(v - mean[i]) / scale[i])));
  const project = (rows) => times(normalise(rows), get("projection"), rank).map((z) => z.map(f32));
  const kept = keep(state, encoder, point.tokens);
  const chosen = kept.flatMap((is, t) => (is ? [t] : []));
  const latents = project(state.states);
  const ofKept = chosen.map((t) => latents[t]);

  const raw = point.kind === "raw_kv";
  const steps = raw ? get("raw_scale") : get(`steps/${point.steps}`);
  const width = raw ? stateDim : point.rank || rank;
  const origin = (t, j) => (raw ? 0 : centre[t * rank + j]);
  const body = Buffer.alloc(chosen.length * width);
  const received = chosen.map((t, row) => {
    const source = raw ? state.states[t] : latents[t];
    const out = Array.from({ length: raw ? stateDim : rank }, (_, j) => origin(t, j));
    for (let j = 0; j < width; j++) {
      const code = toFp8(f32(f32(source[j] - origin(t, j)) / steps[j]));
      body[row * width + j] = code;
      out[j] = f32(out[j] + f32(fromFp8(code) * steps[j]));
    }
    return out;
  });
  const arrived = raw ? project(received) : received;

  const normal = normalise(state.states);
  const again = times(latents, get("reconstruction"), stateDim);
  const total = state.attention.reduce((sum, a) => sum + a, 0);
  const dropped = state.attention.reduce((sum, a, t) => sum + (kept[t] ? 0 : a), 0);
  const away = latents.map((z) => z.map((v, j) => v - get("latent_mean")[j]));
  const turned = times(away, get("latent_inv_cov"), rank);
  const squares = away.reduce((sum, z, t) => sum + z.reduce((s, v, j) => s + v * turned[t][j], 0), 0);
  const figures = [
    norm(minus(ofKept, arrived)) / norm(ofKept),
    total ? dropped / total : 0,
    raw ? 0 : norm(minus(normal, again)) / norm(normal),
    Math.sqrt(Math.max(0, squares) / (latents.length * rank)),
  ];
  return { kept, body, figures };
}
