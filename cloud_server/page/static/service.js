// Talks to the service: who is signed in, feeds of server-sent events, questions.
import { useEffect, useState } from "./dom.js";
import { heardClock } from "./words.js";

const OWN = { "x-neural-bridge-page": "1" };
const SILENT_MS = 25000; // the service says something every 10 s
const AGAIN_MS = 3000;

export class Failed extends Error {
  constructor(status, message) {
    super(message);
    this.status = status; // 0: the service does not answer
  }
}

async function asked(method, path, body) {
  let reply;
  try {
    reply = await fetch(path, {
      method,
      headers: body === undefined ? OWN : { ...OWN, "content-type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
    });
  } catch {
    throw new Failed(0, "The service does not answer.");
  }
  if (!reply.ok) {
    const told = await reply.json().catch(() => null);
    throw new Failed(reply.status, told?.error?.message ?? `HTTP status ${reply.status}`);
  }
  return reply;
}

export async function session() {
  const found = await (await asked("GET", "/live/session")).json();
  heardClock(found.now);
  return found;
}

export async function signIn(key) {
  const found = await (await asked("POST", "/live/sign-in", { key })).json();
  heardClock(found.now);
  return found;
}

export const signOut = () => asked("POST", "/live/sign-out");

export async function look(path) {
  return (await asked("GET", path)).json();
}

// Follow a feed. Returns {status, data, since}: status is "connecting", "live", "lost" (the service
// does not answer; `since` says for how long), "expired" (nobody is signed in), or "refused" with
// `why`. `probe` is a path that says why the feed is refused, if it is. `merge` makes the next data of the last and a message.
export function useFeed(path, probe, name, merge) {
  const [shown, setShown] = useState({ status: "connecting", data: null, since: 0, why: "" });
  useEffect(() => {
    let source = null;
    let timer = 0;
    let ended = false;
    setShown({ status: "connecting", data: null, since: 0, why: "" });
    const say = (status, more = {}) => {
      if (!ended) setShown((before) => ({ ...before, ...more, status }));
    };
    const lost = () => {
      if (!ended) setShown((before) => ({ ...before, status: "lost", since: before.status === "lost" ? before.since : Date.now() }));
    };
    const heard = () => {
      clearTimeout(timer);
      timer = setTimeout(broken, SILENT_MS);
    };
    const later = () => {
      clearTimeout(timer);
      timer = setTimeout(open, AGAIN_MS);
    };
    // The feed broke off: find out whether the session ended or the service is gone.
    async function broken() {
      source?.close();
      clearTimeout(timer);
      if (ended) return;
      try {
        await session();
        await asked("GET", probe);
        lost();
        later();
      } catch (error) {
        if (error.status === 401) return say("expired");
        if (error.status >= 400 && error.status < 429) return say("refused", { why: error.message });
        lost();
        later();
      }
    }
    function open() {
      if (ended) return;
      source = new EventSource(path);
      heard();
      source.addEventListener(name, (event) => {
        heard();
        const message = JSON.parse(event.data);
        heardClock(message.now);
        if (!ended) setShown((before) => ({ status: "live", since: 0, why: "", data: merge(before.data, message) }));
      });
      source.addEventListener("beat", heard);
      source.onmessage = (event) => {
        const { error } = JSON.parse(event.data);
        source.close();
        clearTimeout(timer);
        if (error.type === "authentication_error") say("expired");
        else if (error.retryable) broken();
        else say("refused", { why: error.message });
      };
      source.onerror = broken;
    }
    open();
    return () => {
      ended = true;
      clearTimeout(timer);
      source?.close();
    };
  }, [path]);
  return shown;
}

// Ask a question about a device's newest scene; `piece` gets the text as it comes. Returns the
// answer's fidelity.
export async function ask(row, question, piece, signal) {
  const models = await look("/v1/models");
  const content = [
    { type: "scene", tenant: row.tenant, device: row.device },
    { type: "text", text: question },
  ];
  const body = { model: models.data[0].id, stream: true, messages: [{ role: "user", content }] };
  let reply;
  try {
    reply = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: { ...OWN, "content-type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (signal.aborted) throw error;
    throw new Failed(0, "The service does not answer.");
  }
  if (!reply.ok) {
    const told = await reply.json().catch(() => null);
    throw new Failed(reply.status, told?.error?.message ?? `HTTP status ${reply.status}`);
  }
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let fidelity = null;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Failed(0, "The answer broke off.");
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return fidelity;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Failed(500, chunk.error.message);
      if (chunk.bridge) fidelity = { ...chunk.bridge, request: chunk.id.replace(/^chatcmpl-/, "") };
      const said = chunk.choices[0]?.delta?.content;
      if (said) piece(said);
    }
  }
}
