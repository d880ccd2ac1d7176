// Connects the elements of the page with the functions above, and starts the updates.

const SEARCH_PAUSE_MS = 300;

function prepareFilter() {
  const form = byId("filter");
  let timer = 0;
  form.oninput = () => { clearTimeout(timer); timer = setTimeout(writeFilter, SEARCH_PAUSE_MS); };
  form.onsubmit = (event) => { event.preventDefault(); writeFilter(); };
  form.onreset = () => { location.hash = ""; };
  window.addEventListener("hashchange", filterChanged);
  showFilter();
}

function start() {
  if (window.matchMedia("(max-width: 860px)").matches) byId("new").open = false;
  signInByAddress();
  byId("sign-in").addEventListener("cancel", (event) => event.preventDefault());
  byId("sign-in").querySelector("fieldset").onchange = chooseSignIn;
  byId("sign-out").hidden = !sessionStorage.getItem("authorization");
  byId("sign-out").onclick = signOut;
  byId("connection").querySelector("button").onclick = update;
  byId("older").onclick = (event) => attempt(event.currentTarget, byId("message"), loadOlder);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) update(); });
  window.addEventListener("online", update);
  prepareFilter();
  prepareViewerActions();
  prepareForm();
  update();
}

start();
