// Every byte that bridge.proto describes and this client needs: session constants, header, digests.

import { createHash } from "node:crypto";
import { blake2b } from "@noble/hashes/blake2";

export const PICTURE_POINT = 254;
const HEADER_VERSION = 3;
const ALL_KEPT = 128;
const MOST_INLINE_TOKENS = 144;

export const sha256 = (data) => createHash("sha256").update(data).digest();

// --------------------------------------------------------------------------- LAYOUT, FINGERPRINT

const FLOATS = new Set(["theta", "attention_factor", "inv_freq"]);

/** A float64 as FINGERPRINT wants it: 10000.0, 0.0001, 1e-05, 1.5e+16. */
export function canonicalFloat(x) {
  if (x === 0) return Object.is(x, -0) ? "-0.0" : "0.0";
  const [mantissa, power] = x.toExponential().split("e"); // shortest digits that read back
  const exponent = Number(power);
  if (exponent < -4 || exponent >= 16) {
    const digits = String(Math.abs(exponent)).padStart(2, "0");
    return `${mantissa}e${exponent < 0 ? "-" : "+"}${digits}`;
  }
  // JavaScript writes these without an exponent too, down to 1e-6 and up to 1e21.
  const plain = String(x);
  return plain.includes(".") ? plain : `${plain}.0`;
}

/** JSON with sorted keys, no spaces, only ASCII; `float`: whether numbers are written as floats. */
export function canonicalJson(value, float = false) {
  if (Array.isArray(value)) return `[${value.map((v) => canonicalJson(v, float)).join(",")}]`;
  if (typeof value === "number") return float ? canonicalFloat(value) : String(value);
  if (typeof value === "object") {
    const parts = Object.keys(value)
      .sort()
      .map((key) => `${canonicalJson(key)}:${canonicalJson(value[key], FLOATS.has(key))}`);
    return `{${parts.join(",")}}`;
  }
  return JSON.stringify(value).replace(
    /[\u007f-\uffff]/g,
    (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

export const fingerprint = (layout) => sha256(canonicalJson(layout)).toString("hex");

/** SESSION CONSTANTS: the key of every digest, 32 bytes. */
export function sessionConstants(sessionId, sourceFingerprint, bundleDigest) {
  return sha256(
    canonicalJson({
      bundle_digest: bundleDigest,
      protocol_version: 1,
      session_id: Buffer.from(sessionId).toString("hex"),
      source_fingerprint: sourceFingerprint,
    }),
  );
}

// ---------------------------------------------------------------------------------- FRAME HEADER

function varint(value) {
  const out = [];
  for (; value > 127; value = Math.floor(value / 128)) out.push((value % 128) | 128);
  return [...out, value];
}

/** DISTORTION FIGURES: a figure's byte. */
export function figureByte(x) {
  return x > 0 ? Math.min(255, Math.max(1, Math.round(176 + 64 * Math.log10(x)))) : 0;
}

/**
 * A key frame's header, and its payload with the kept bitmap where that travels.
 *
 * @param {number[]} figures quantize, dropped_attention, latent_residual, unfamiliarity
 * @param {boolean[]} kept one for each token of the grid; empty at the picture point
 */
export function packFrame(point, frameNumber, deltaMs, figures, kept, body) {
  const everything = kept.length > 0 && kept.every(Boolean);
  const header = [
    HEADER_VERSION | (everything ? ALL_KEPT : 0),
    point,
    ...figures.map(figureByte),
    ...varint(kept.length),
    ...varint(frameNumber),
    ...varint(deltaMs),
  ];
  const bitmap = Buffer.alloc(everything ? 0 : Math.ceil(kept.length / 8));
  if (!everything) kept.forEach((is, i) => (bitmap[i >> 3] |= is ? 1 << (i & 7) : 0));
  const inline = kept.length <= MOST_INLINE_TOKENS;
  return {
    header: Buffer.concat([Buffer.from(header), inline ? bitmap : Buffer.alloc(0)]),
    payload: Buffer.concat([inline ? Buffer.alloc(0) : bitmap, body]),
  };
}

// ----------------------------------------------------------------------------- DIGEST, REQUEST ID

function uint32(value) {
  const out = Buffer.alloc(4);
  out.writeUInt32LE(value);
  return out;
}

function digest(constants, ...parts) {
  const data = parts.flatMap((part) => [uint32(part.length), part]);
  return Buffer.from(blake2b(Buffer.concat(data), { key: constants, dkLen: 8 }));
}

/** An InferRequest, sealed. Without an id both sides derive it: see `derivedId`. */
export function sealFrame(constants, requestId, { header, payload }, question, maxNewTokens) {
  const text = Buffer.from(question);
  return {
    request_id: requestId,
    frame: {
      header,
      payload,
      digest: digest(constants, requestId, header, payload, text, uint32(maxNewTokens)),
    },
    question,
    max_new_tokens: maxNewTokens,
  };
}

export function sealAsk(constants, sessionId, requestId, frameNumber, question, maxNewTokens) {
  const parts = [uint32(frameNumber), Buffer.alloc(0), Buffer.from(question), uint32(maxNewTokens)];
  return {
    session_id: sessionId,
    frame_number: frameNumber,
    request_id: requestId,
    question,
    max_new_tokens: maxNewTokens,
    digest: digest(constants, requestId, ...parts),
  };
}

export function derivedId(constants, frameNumber) {
  const data = Buffer.concat([Buffer.from("request"), uint32(frameNumber)]);
  return Buffer.from(blake2b(data, { key: constants, dkLen: 8 }));
}
