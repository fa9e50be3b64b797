// Turns a key into a session. The key is sent once, and kept nowhere.
import { html, useState } from "./dom.js";
import { signIn } from "./service.js";

export function SignIn({ why, done }) {
  const [failed, setFailed] = useState("");
  const [busy, setBusy] = useState(false);
  document.title = "Sign in – Neural Bridge";
  async function submit(event) {
    event.preventDefault();
    const field = event.target.elements.key;
    setBusy(true);
    try {
      done(await signIn(field.value));
    } catch (error) {
      setFailed(error.status === 401 ? "This key is not valid here. Ask the operator for one (cloud-server keys add)." : error.message);
      field.focus();
    } finally {
      setBusy(false);
    }
  }
  return html`
    <form class="sign-in" onSubmit=${submit}>
      <h1>Sign in</h1>
      ${why && html`<p class="banner bad" role="alert">${why}</p>`}
      <label for="key">Key of an application or operator</label>
      <input id="key" name="key" type="password" required autocomplete="current-password" spellcheck=${false}
        aria-invalid=${failed ? "true" : "false"} aria-describedby="key-help" />
      <p id="key-help">It begins with <code>nbk_</code>. The service gives this browser a cookie in its place.</p>
      ${failed && html`<p class="banner bad" role="alert">${failed}</p>`}
      <button type="submit" disabled=${busy}>Sign in</button>
    </form>`;
}
