// The live page: which view is shown, and to whom.
import { html, render, useEffect, useRef, useState } from "./dom.js";
import { Fleet } from "./fleet.js";
import { Device } from "./device.js";
import { Request } from "./request.js";
import { SignIn } from "./sign_in.js";
import { session, signOut } from "./service.js";

function route() {
  const parts = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  if (parts[0] === "device" && parts.length === 3) return { view: "device", tenant: parts[1], device: parts[2] };
  if (parts[0] === "device" && parts[3] === "request" && parts.length === 5)
    return { view: "request", tenant: parts[1], device: parts[2], id: parts[4] };
  return { view: "fleet" };
}

function Page() {
  const [at, setAt] = useState(route());
  const [who, setWho] = useState({ status: "loading", session: null, why: "" });
  const main = useRef(null);
  const learn = () =>
    session().then(
      (found) => setWho({ status: "in", session: found, why: "" }),
      (error) => {
        if (error.status === 401) setWho({ status: "out", session: null, why: "" });
        else setWho({ status: "failed", session: null, why: error.message });
      },
    );
  useEffect(() => {
    learn();
    const moved = () => {
      setAt(route());
      main.current?.focus();
    };
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  useEffect(() => {
    if (who.status !== "failed") return undefined;
    const timer = setTimeout(learn, 3000);
    return () => clearTimeout(timer);
  }, [who]);
  const expired = () =>
    setWho({ status: "out", session: null, why: "You are signed out: the session has expired, or its key was taken away." });
  const leave = () => signOut().finally(() => setWho({ status: "out", session: null, why: "" }));
  let view = null;
  if (who.status === "failed")
    view = html`<div class="banner bad" role="alert"><strong>The service does not answer.</strong> ${who.why} Trying again every 3 seconds.</div>`;
  else if (who.status === "out")
    view = html`<${SignIn} why=${who.why} done=${(found) => setWho({ status: "in", session: found, why: "" })} />`;
  else if (who.status === "in" && at.view === "device")
    view = html`<${Device} key=${`${at.tenant}/${at.device}`} at=${at} session=${who.session} expired=${expired} />`;
  else if (who.status === "in" && at.view === "request")
    view = html`<${Request} key=${at.id} at=${at} expired=${expired} />`;
  else if (who.status === "in") view = html`<${Fleet} session=${who.session} expired=${expired} />`;
  return html`
    <a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); main.current.focus(); }}>Skip to the content</a>
    <header>
      <a class="home" href="#/">Neural Bridge</a>
      ${who.session && who.session.kind !== "anyone" && html`
        <span class="who">${who.session.tenant} / ${who.session.name}</span>
        <button type="button" class="quiet" onClick=${leave}>Sign out</button>`}
    </header>
    <main id="main" tabindex="-1" ref=${main}>${view}</main>`;
}

render(html`<${Page} />`, document.getElementById("page"));
