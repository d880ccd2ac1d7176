// Requests to the shim with the caller's key, and the dialog that asks for the key.

const READ_TIMEOUT_MS = 20000;
const CHANGE_TIMEOUT_MS = 180000; // an upload, or a call that the shim forwards to Scenario

// A response that is not a success, or no response at all (`status` 0).
class RequestError extends Error {
  constructor(message, status = 0, retryAfterS = 0) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

const byId = (id) => document.getElementById(id);
let serverClockAhead = 0; // milliseconds

const now = () => Date.now() + serverClockAhead;

// Return the JSON of a response. `caller` is the id of the caller for whom an administrator makes the request.
async function request(path, { method = "GET", body, caller = "" } = {}) {
  const used = sessionStorage.getItem("authorization") || "";
  const headers = { ...(used && { Authorization: used }), ...(caller && { "X-Shim-Caller": caller }),
    ...(body && { "Content-Type": "application/json" }) };
  const response = await fetchOrFail(path.slice(1), { method, headers, body: body && JSON.stringify(body) });
  const date = Date.parse(response.headers.get("Date"));
  if (date) serverClockAhead = date - Date.now();
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  const isLogin = response.status === 401 || (response.status === 429 && !answer.actionName); // too many wrong keys
  if (isLogin) {
    await signIn(used && (answer.reason || "The key is wrong."), used);
    return request(path, { method, body, caller });
  }
  const retryAfterS = Number(response.headers.get("Retry-After")) || 0;
  throw new RequestError(answer.reason || "The server responded with status " + response.status + ".", response.status, retryAfterS);
}

async function fetchOrFail(url, options) {
  const timeoutMs = options.method === "GET" ? READ_TIMEOUT_MS : CHANGE_TIMEOUT_MS;
  try {
    return await fetch(url, { ...options, signal: AbortSignal.timeout(timeoutMs) });
  } catch (error) {
    throw new RequestError(error.name === "TimeoutError" ? "The server did not respond in time." : "The server cannot be reached.");
  }
}

const post = (path, body, options = {}) => request(path, { ...options, method: "POST", body });
const del = (path, options = {}) => request(path, { ...options, method: "DELETE" });

let signInResult = null; // a promise while the dialog is open

// Ask for a key, unless another one was entered since the request that used `refused`.
function signIn(problem, refused) {
  if (!signInResult && (sessionStorage.getItem("authorization") || "") !== refused) return Promise.resolve();
  signInResult ||= new Promise((done) => {
    const dialog = byId("sign-in"), form = dialog.querySelector("form");
    showText(form.querySelector(".message"), problem);
    form.onsubmit = () => {
      sessionStorage.setItem("authorization", authorizationOf(new FormData(form)));
      byId("sign-out").hidden = false;
      form.secret.value = "";
      signInResult = null;
      done();
    };
    dialog.showModal();
  });
  return signInResult;
}

function authorizationOf(entered) {
  const secret = entered.get("secret").trim();
  if (entered.get("kind") === "token") return "Bearer " + secret;
  const bytes = new TextEncoder().encode(entered.get("key").trim() + ":" + secret);
  return "Basic " + btoa(String.fromCharCode(...bytes));
}

// Sign in with the token of an address such as /#token=…, and remove it from the address. A fragment is sent to no server.
function signInByAddress() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return;
  sessionStorage.setItem("authorization", "Bearer " + token);
  history.replaceState(null, "", location.pathname);
}

// Show the fields of a key, or the field of a token.
function chooseSignIn() {
  const form = byId("sign-in").querySelector("form"), isToken = form.kind.value === "token";
  form.key.parentElement.hidden = form.key.disabled = isToken;
  byId("secret-name").textContent = isToken ? "Token" : "Secret";
}

function signOut() {
  sessionStorage.removeItem("authorization");
  location.reload();
}

// Show a text in an element, or hide the element if there is none.
function showText(element, text) {
  element.textContent = text || "";
  element.hidden = !text;
}
