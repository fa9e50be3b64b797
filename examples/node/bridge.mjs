// One session with a service: Negotiate, FetchEncoder, one Infer stream, Ask; refusals and retries.

import { randomBytes } from "node:crypto";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

import { derivedId, fingerprint, sealAsk, sealFrame, sessionConstants, sha256 } from "./contract.mjs";

const PROTO = fileURLToPath(new URL("../../protos/neuralbridge/v1/bridge.proto", import.meta.url));
const CALL_MS = 10_000;
const ANSWER_MS = 60_000;
const ATTEMPTS = 8;
const [FIRST_PAUSE_MS, LONGEST_PAUSE_MS] = [200, 10_000];
const LONGEST_ASKED_MS = 60_000; // a service that asks for a longer pause gets no more than this
const [FRAME_CORRUPT, UNKNOWN_SESSION, UNKNOWN_SCENE, OFFLINE] = [202, 303, 304, 503];

/** A refusal, whichever way it came: see ERRORS in bridge.proto. */
export class Refused extends Error {
  constructor(code, name, message, retryable, pauseMs = 0) {
    super(`${code} ${name}: ${message}`);
    Object.assign(this, { code, retryable, pauseMs });
  }

  /** From a failed call: the code is in the trailing metadata, if the service sent it. */
  static ofCall(error) {
    const code = Number(error.metadata?.get("nb-error-code")[0] ?? 0);
    const status = grpc.status[error.code] ?? "UNKNOWN";
    const pauseMs = Number(error.metadata?.get("nb-retry-after-ms")[0] ?? 0);
    if (code) return new Refused(code, status, error.details, AGAIN.has(code), pauseMs);
    const passes = ["UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"].includes(status);
    return new Refused(OFFLINE, status, error.details, passes);
  }
}

/** Codes of failed calls that are worth sending again; Refused events say so themselves. */
const AGAIN = new Set([303, 306, 501, 502, 503, 707, 709]);

export class Bridge {
  /**
   * @param {string} server host:port
   * @param {string} layoutJson the edge model's cache layout
   * @param {(line: string) => void} say gets a line for every step
   * @param {object} [tls] `roots`, `key` and `chain` in PEM, of an enrolled device, and `serverName`
   *   if the server's certificate is for another name than the host's; without it: plain text
   */
  constructor(server, layoutJson, say, tls) {
    const credentials = tls
      ? grpc.credentials.createSsl(tls.roots, tls.key, tls.chain)
      : grpc.credentials.createInsecure();
    const options = { keepCase: true, longs: Number, defaults: true, oneofs: true };
    const { neuralbridge } = grpc.loadPackageDefinition(loader.loadSync(PROTO, options));
    this.stub = new neuralbridge.v1.Bridge(server, credentials, {
      ...(tls?.serverName && { "grpc.ssl_target_name_override": tls.serverName }),
      "grpc.keepalive_time_ms": 10_000,
      "grpc.enable_http_proxy": /^(localhost|127\.|\[::1\])/.test(server) ? 0 : 1,
    });
    Object.assign(this, { layoutJson, say, session: null, encoderFile: null });
  }

  close() {
    this.session?.stream?.end();
    this.stub.close();
  }

  // ------------------------------------------------------------------------------------- sessions

  /** Negotiate, and fetch the encoder if it has changed. */
  open() {
    return this.#retry(() => this.#open());
  }

  async #open() {
    this.session?.stream?.end();
    const layout = JSON.parse(this.layoutJson);
    const { settings_digest, ...first } = layout; // a layout of version 1: any service reads it
    const session = await this.#call("Negotiate", {
      protocol_version: 1,
      source_layout_json: JSON.stringify(first),
      source_settings_digest: settings_digest ?? "",
      codecs: ["fp8_e4m3"],
      agent_version: "node example",
    });
    const constants = session.session_constants;
    const source = [layout, first]
      .map(fingerprint)
      .find((one) => sessionConstants(session.session_id, one, session.bundle_digest).equals(constants));
    if (!source) {
      throw new Error("the service computes other session constants: is the layout the model's?");
    }
    if (!this.encoderFile || sha256(this.encoderFile).toString("hex") !== session.encoder_digest) {
      this.encoderFile = await this.#fetch(session);
    }
    const points = JSON.parse(session.operating_points_json);
    this.session = { ...session, constants, source, points, next: 0, stream: null };
    this.say(`session: bundle ${session.bundle_id} ${session.bundle_version}, ` +
      `encoder of ${this.encoderFile.length} bytes, points ${points.map((p) => p.name).join(", ")}`);
    return this.session;
  }

  async #fetch({ session_id, encoder_digest }) {
    const call = this.stub.FetchEncoder({ session_id, encoder_digest }, deadline(CALL_MS));
    const chunks = [];
    try {
      for await (const chunk of call) chunks.push(chunk.data);
    } catch (error) {
      throw Refused.ofCall(error);
    }
    const file = Buffer.concat(chunks);
    if (sha256(file).toString("hex") !== encoder_digest) throw new Error("the encoder is damaged");
    return file;
  }

  #call(method, request) {
    return new Promise((resolve, reject) => {
      this.stub[method](request, deadline(CALL_MS), (error, reply) =>
        error ? reject(Refused.ofCall(error)) : resolve(reply));
    });
  }

  /** The operating point of that name. */
  point(name) {
    const found = this.session.points.find((point) => point.name === name);
    if (found) return found;
    throw new Error(`no point '${name}': ${this.session.points.map((p) => p.name).join(", ")}`);
  }

  // ----------------------------------------------------------------------------------- frames, asks

  /**
   * Send a frame until its terminal event.
   *
   * @param {(frameNumber: number) => {header: Buffer, payload: Buffer}} pack
   * @param {string} question empty to just hold the scene
   * @returns the session that holds it, its number there, its Answer (null without a question)
   */
  async infer(pack, question) {
    let [session, number, id] = [null, 0, null];
    let carried = Buffer.alloc(0); // both sides derive the id, so it need not travel
    return this.#retry(async () => {
      if (session !== this.session) {
        session = this.session; // a new one: another number, sealed again, under the first id
        number = session.next++;
        if (id) carried = id;
        else id = derivedId(session.constants, number);
      }
      const request = sealFrame(session.constants, carried, pack(number), question, 0);
      const answer = await this.#send(session, id, request);
      return { session, number, answer };
    });
  }

  /** Another question about a frame that `infer` sent; sends it again if its scene is gone. */
  async ask(frame, pack, question) {
    const requestId = randomBytes(8);
    return this.#retry(async () => {
      if (frame.session !== this.session) Object.assign(frame, await this.infer(pack, ""));
      const { session_id, constants } = this.session;
      const request = sealAsk(constants, session_id, requestId, frame.number, question, 0);
      let answer = null;
      try {
        for await (const event of this.stub.Ask(request, deadline(ANSWER_MS))) {
          this.#show(event);
          if (event.event === "answer") answer = event.answer;
        }
      } catch (error) {
        const refused = Refused.ofCall(error);
        if (refused.code !== UNKNOWN_SCENE) throw refused;
        frame.session = null;
        throw Object.assign(refused, { retryable: true });
      }
      return answer;
    });
  }

  // ------------------------------------------------------------------------------------ one stream

  #send(session, requestId, request) {
    const stream = this.#stream(session);
    const key = requestId.toString("hex");
    return new Promise((resolve, reject) => {
      const late = setTimeout(
        () => stream.settle(key, new Refused(OFFLINE, "late", `no answer in ${ANSWER_MS} ms`, true)),
        ANSWER_MS,
      );
      stream.waiting.set(key, { resolve, reject, late, asked: request.question !== "" });
      stream.call.write(request);
    });
  }

  /** The session's Infer stream; opened again when it broke. */
  #stream(session) {
    if (session.stream) return session.stream;
    const metadata = new grpc.Metadata();
    metadata.set("nb-session-bin", session.session_id);
    const call = this.stub.Infer(metadata);
    const stream = { call, waiting: new Map(), end: () => call.end() };
    stream.settle = (key, outcome) => {
      const found = stream.waiting.get(key);
      if (!found) return; // it has ended before: drop it
      stream.waiting.delete(key);
      clearTimeout(found.late);
      if (outcome instanceof Error) found.reject(outcome);
      else found.resolve(outcome);
    };
    const settleAll = (outcome) => [...stream.waiting.keys()].forEach((k) => stream.settle(k, outcome));
    call.on("data", (event) => {
      const key = event.request_id.toString("hex");
      this.#show(event);
      if (event.event === "refused") {
        const { code, name, message, retryable, retry_after_ms } = event.refused;
        const again = retryable || code === FRAME_CORRUPT;
        const refused = new Refused(code, name, message, again, retry_after_ms);
        if (key) stream.settle(key, refused);
        else settleAll(refused); // whose it was cannot be told
      } else if (event.event === "answer") {
        stream.settle(key, event.answer);
      } else if (event.event === "accepted" && !stream.waiting.get(key)?.asked) {
        stream.settle(key, null);
      }
    });
    const gone = (refused) => {
      if (session.stream === stream) session.stream = null;
      settleAll(refused);
    };
    call.on("error", (error) => gone(Refused.ofCall(error)));
    call.on("end", () => gone(new Refused(OFFLINE, "ended", "the stream ended", true)));
    session.stream = stream;
    return stream;
  }

  /** Retries after the pause that the service asked for, and full jitter; after 303 in a new session. */
  async #retry(work) {
    for (let attempt = 0; ; attempt++) {
      try {
        return await work();
      } catch (error) {
        if (!(error instanceof Refused) || !error.retryable || attempt + 1 >= ATTEMPTS) throw error;
        const most = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** attempt);
        const pause = Math.min(error.pauseMs, LONGEST_ASKED_MS) + Math.random() * most;
        this.say(`again after: ${error.message} (in ${Math.round(pause)} ms)`);
        await new Promise((resolve) => setTimeout(resolve, pause));
        if (error.code === UNKNOWN_SESSION) await this.open();
      }
    }
  }

  #show(event) {
    const to = `frame ${event.frame_number}`;
    if (event.event === "accepted") this.say(`${to}: accepted, ${figures(event.accepted.distortion)}`);
    if (event.event === "token") this.say(`${to}: token ${event.token.index} ${JSON.stringify(event.token.text)}`);
    if (event.event === "answer") {
      const { text, tokens, timings, from_memory } = event.answer;
      const when = from_memory ? "from memory" : `${timings?.ttft_ms.toFixed(1)} ms to the first`;
      this.say(`${to}: answer ${JSON.stringify(text)}, ${tokens} tokens, ${when}`);
    }
    if (event.event === "refused") this.say(`${to}: refused, ${event.refused.code} ${event.refused.name}`);
    if (event.event === "rate_advice") this.say(`advice: ${JSON.stringify(event.rate_advice)}`);
  }
}

const deadline = (ms) => ({ deadline: Date.now() + ms });

const figures = (distortion) =>
  ["quantize", "dropped_attention", "latent_residual", "unfamiliarity"]
    .map((name) => `${name} ${distortion[name].toFixed(3)}`)
    .join(", ");
