// The list: filters, pages, and live updates.
//
// The shim counts the changes of jobs. One request asks for the jobs that changed since the last one, and gets those that
// are shown or match the filter. The page repeats it every BUSY_MS while a shown job is unfinished, and every IDLE_MS
// otherwise; a hidden page asks when it is shown again. After a failure it tries again after longer and longer pauses.

const FIRST_PAGE = 50, NEXT_PAGE = 100, MAX_SHOWN = 2000, MAX_RELOADED = 500;
const BUSY_MS = 2000, IDLE_MS = 5000, OVERVIEW_MS = 15000, MAX_PAUSE_MS = 30000;
const COPIES_PER_REQUEST = 8;
const FILTERS = ["search", "status", "side", "caller"];

const live = { token: "", failures: 0, timer: 0, run: Promise.resolve(), overviewAt: 0, older: "", filter: 0, written: "" };
const copying = new Set(), requestedCopies = new Set(); // ids of Scenario's images that the shim does not have yet

// ---- filters, which are in the fragment of the page's address

const readFilter = () => new URLSearchParams(location.hash.slice(1));

function writeFilter() {
  const filter = new URLSearchParams();
  for (const name of FILTERS) {
    const value = byId("filter")[name].value.trim();
    if (value) filter.set(name, value);
  }
  live.written = String(filter);
  if (live.written !== String(readFilter())) location.hash = filter;
}

function showFilter() {
  const filter = readFilter(), form = byId("filter");
  for (const name of FILTERS) form[name].value = filter.get(name) || "";
}

// The query of the list: the shim's names and values of the filters.
function query(more = {}) {
  const filter = readFilter(), status = filter.get("status");
  const parameters = { search: filter.get("search"), status: status === "unfinished" ? UNFINISHED.join() : status,
    side: filter.get("side"), authorId: filter.get("caller"), ...more };
  return "?" + new URLSearchParams(Object.entries(parameters).filter(([, value]) => value));
}

function filterChanged() {
  if (String(readFilter()) !== live.written) showFilter(); // otherwise the fields have it, and perhaps newer text
  live.token = "";
  live.filter += 1;
  update();
}

// ---- pages

// Load the list: again with as many jobs as are shown, or with its first page for a new filter.
async function loadList() {
  const filter = live.filter, wanted = live.token ? Math.min(Math.max(entries.size, FIRST_PAGE), MAX_RELOADED) : FIRST_PAGE;
  const page = await request("/shim/jobs" + query({ pageSize: Math.min(wanted, 100) }));
  const found = [...page.jobs];
  let older = page.nextPaginationToken;
  while (older && found.length < wanted) {
    const next = await request("/shim/jobs" + query({ pageSize: 100, paginationToken: older }));
    found.push(...next.jobs);
    older = next.nextPaginationToken;
  }
  if (filter !== live.filter) return;
  const ids = new Set(found.map((data) => data.job.jobId));
  for (const id of [...entries.keys()]) if (!ids.has(id)) removeJob(id);
  for (const data of found) showJob(data);
  live.token = page.changeToken;
  live.older = older;
  showCount();
}

async function loadOlder() {
  const filter = live.filter;
  const page = await request("/shim/jobs" + query({ pageSize: NEXT_PAGE, paginationToken: live.older }));
  if (filter !== live.filter) return;
  for (const data of page.jobs) showJob(data);
  live.older = page.nextPaginationToken;
  showCount();
}

function showCount() {
  const hasFilter = Boolean(String(readFilter())), empty = byId("empty");
  byId("filter").querySelector("button").hidden = !hasFilter;
  empty.hidden = entries.size > 0;
  empty.querySelector("b").textContent = hasFilter ? "No job matches the filter" : "No jobs yet";
  empty.querySelector("span").textContent = hasFilter ? "Change the search or clear the filter." : "Enter a prompt. The image and its seed appear here.";
  byId("older").hidden = !live.older;
  byId("count").textContent = entries.size ? count(entries.size, "job") + (live.older ? " shown" : "") : "";
}

// ---- live updates

// Get the changes now, and then again and again. Calls run one after the other.
function update() {
  clearTimeout(live.timer);
  live.run = live.run.then(updateOnce);
  return live.run;
}

async function updateOnce() {
  let pauseMs;
  try {
    await loadChanges();
    live.failures = 0;
    pauseMs = [...entries.values()].some(({ data }) => !isFinal(data.job.status)) ? BUSY_MS : IDLE_MS;
    showText(byId("connection").querySelector("span"), "");
    byId("connection").hidden = true;
  } catch (error) {
    live.failures += 1;
    pauseMs = Math.max(1000 * (error.retryAfterS || 0), Math.min(MAX_PAUSE_MS, 1000 * 2 ** live.failures));
    const trying = " Trying again in " + Math.round(pauseMs / 1000) + " s.";
    showText(byId("connection").querySelector("span"), error.message + trying);
    byId("connection").hidden = false;
  }
  clearTimeout(live.timer);
  if (!document.hidden) live.timer = setTimeout(update, pauseMs);
}

async function loadChanges() {
  if (!live.token || entries.size > MAX_SHOWN) await loadList();
  while (live.token && (await loadSomeChanges()));
  renderTimes();
  if (Date.now() > live.overviewAt) await loadOverview();
  copyImages();
}

// Show the jobs that changed, up to 100 of them. Return whether there are more.
async function loadSomeChanges() {
  const filter = live.filter, since = live.token;
  const changes = await request("/shim/jobs/changes" + query({ since }));
  if (filter !== live.filter || since !== live.token) return false;
  if (!changes.isComplete) {
    await loadList();
    return false;
  }
  const matching = new Set(changes.matching), oldest = byId("jobs").lastElementChild?.dataset.createdAt || "";
  for (const id of changes.deleted) removeJob(id);
  for (const data of changes.jobs) {
    const before = entries.get(data.job.jobId), isOnPage = !live.older || data.createdAt >= oldest;
    if (before ? isFinal(data.job.status) && !isFinal(before.data.job.status) : matching.has(data.job.jobId)) live.overviewAt = 0;
    if (before || (matching.has(data.job.jobId) && isOnPage)) showJob(data);
  }
  if (changes.jobs.length || changes.deleted.length) showCount();
  live.token = changes.changeToken;
  return changes.hasMore;
}

// Let the shim copy the images of Scenario's jobs that it does not have yet, a few at a time.
async function copyImages() {
  if (copying.size || !hasScenario) return;
  const wanted = [];
  for (const { data } of entries.values()) {
    if (data.side !== "scenario" || data.job.status !== "success") continue;
    const present = new Set(data.assets.map((asset) => asset.id));
    wanted.push(...data.job.metadata.assetIds.filter((id) => !present.has(id) && !requestedCopies.has(id)));
  }
  for (const id of wanted.slice(0, COPIES_PER_REQUEST)) copying.add(id).size && requestedCopies.add(id);
  if (!copying.size) return;
  try {
    const found = await post("/assets/get-bulk", { assetIds: [...copying] });
    addAssets(new Map(found.assets.map((asset) => [asset.id, asset])));
  } catch (error) {
    console.warn("Images of Scenario were not copied:", error.message);
  } finally {
    copying.clear();
  }
  copyImages();
}

function addAssets(found) {
  for (const entry of entries.values()) {
    const ids = entry.data.job.metadata.assetIds;
    if (!ids.some((id) => found.has(id))) continue;
    const present = new Map(entry.data.assets.map((asset) => [asset.id, asset]));
    entry.data.assets = ids.map((id) => present.get(id) || found.get(id)).filter(Boolean);
    renderRow(entry);
  }
}
