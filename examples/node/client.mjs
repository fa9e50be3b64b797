// A Neural Bridge client from bridge.proto alone: a model's cache or a picture, and questions to it.
//
//   node client.mjs --server 127.0.0.1:50051 --state state.safetensors 'how many cars ?' 'where ?'
//
// Of an enrolled device, in TLS: --identity ~/.local/state/neural-bridge/edge/identity/identity.json

import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";

import { Bridge } from "./bridge.mjs";
import { PICTURE_POINT, packFrame } from "./contract.mjs";
import { encodeState, readEncoder, readState } from "./encode.mjs";

const { values: given, positionals: questions } = parseArgs({
  allowPositionals: true,
  options: {
    server: { type: "string", default: "127.0.0.1:50051" },
    state: { type: "string" }, // a cache, from `python -m examples.node.export_state`
    point: { type: "string", default: "fp8" }, // an operating point with the quantizer fp8_e4m3
    identity: { type: "string" }, // as `edge-agent enrol` stored it; without it: plain text
    "server-name": { type: "string" }, // in the server's certificate, if not the host in --server
    picture: { type: "string" }, // a PNG, JPEG or WebP file: the same questions at the picture point
  },
});
if (!given.state || !questions.length) {
  console.error("usage: node client.mjs --server HOST:PORT --state FILE [--picture FILE] QUESTION…");
  process.exit(2);
}

const state = readState(readFileSync(given.state));
const bridge = new Bridge(given.server, state.layoutJson, console.log, readIdentity(given.identity));

function readIdentity(path) {
  if (!path) return undefined;
  const stored = JSON.parse(readFileSync(path, "utf8"));
  const [roots, key, chain] = ["roots_pem", "key_pem", "chain_pem"].map((name) => Buffer.from(stored[name]));
  return { roots, key, chain, serverName: given["server-name"] };
}

/** The first question travels with the frame; further ones are about the scene that is held. */
async function askAll(pack) {
  const frame = await bridge.infer(pack, questions[0]);
  console.log(`${questions[0]} -> ${frame.answer.text}`);
  for (const question of questions.slice(1)) {
    console.log(`${question} -> ${(await bridge.ask(frame, pack, question)).text}`);
  }
}

try {
  await bridge.open();
  const encoder = readEncoder(bridge.encoderFile);
  if (encoder.fingerprint !== bridge.session.source) throw new Error("an encoder for another model");
  const point = bridge.point(given.point);
  const { kept, body, figures } = encodeState(state, encoder, point);
  console.log(`point ${point.name}: ${kept.filter(Boolean).length} of ${kept.length} tokens, ${body.length} bytes`);
  await askAll((number) => packFrame(point.index, number, 0, figures, kept, body));
  if (given.picture) {
    const file = readFileSync(given.picture);
    console.log(`point picture: ${file.length} bytes`);
    await askAll((number) => packFrame(PICTURE_POINT, number, 0, [0, 0, 0, 0], [], file));
  }
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
} finally {
  bridge.close();
}
