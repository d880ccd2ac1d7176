// One row of the list for each job.

const entries = new Map(); // job id -> { data, row }: the jobs that are shown, the newest first in the document

// Add a job to the list at its place, or update its row.
function showJob(data) {
  const id = data.job.jobId, shown = entries.get(id);
  if (shown) {
    announceEnd(shown.data, data);
    shown.data = data;
    renderRow(shown);
    return;
  }
  const row = byId("row").content.firstElementChild.cloneNode(true), entry = { data, row };
  row.dataset.job = id;
  row.querySelector("details").addEventListener("toggle", () => renderDetails(entry));
  row.querySelector("img.thumb").onclick = (event) => {
    event.preventDefault();
    openViewer(entry, entry.data.assets[0]);
  };
  entries.set(id, entry);
  renderRow(entry);
  insertByTime(row, data.createdAt);
}

function insertByTime(row, createdAt) {
  row.dataset.createdAt = createdAt;
  const list = byId("jobs");
  let after = list.lastElementChild;
  if (list.firstElementChild && list.firstElementChild.dataset.createdAt <= createdAt) after = null;
  while (after && after.dataset.createdAt < createdAt) after = after.previousElementSibling;
  if (after) after.after(row); else list.prepend(row);
}

function removeJob(id) {
  entries.get(id)?.row.remove();
  entries.delete(id);
}

function renderRow(entry) {
  const { data, row } = entry, { job } = data, cell = (name) => row.querySelector("." + name + " > :last-child");
  row.dataset.status = job.status;
  row.querySelector("summary > .prompt").textContent = data.prompt || job.jobType || job.jobId;
  row.querySelector(".word").textContent = stateText(job);
  showProgress(row.querySelector("summary progress"), job);
  cell("origin").textContent = sideText(data.side);
  cell("caller").textContent = data.caller.name;
  cell("size").textContent = sizeText(data);
  cell("taken").textContent = takenText(data);
  cell("cost").textContent = costText(data);
  const when = cell("when"), date = new Date(data.createdAt);
  when.dateTime = data.createdAt;
  when.title = date.toLocaleString();
  when.textContent = whenText(date);
  renderThumb(row, data.assets[0]);
  renderDetails(entry);
}

function stateText(job) {
  const percent = job.status === "in-progress" && job.progress > 0 ? " " + Math.floor(100 * job.progress) + " %" : "";
  return (STATES[job.status] || job.status) + percent;
}

function showProgress(bar, job) {
  bar.hidden = isFinal(job.status);
  if (job.progress > 0) bar.value = job.progress; else bar.removeAttribute("value");
}

function renderThumb(row, asset) {
  const image = row.querySelector("img.thumb");
  image.hidden = !asset;
  row.querySelector(".thumb.none").hidden = Boolean(asset);
  if (asset && image.dataset.asset !== asset.id) {
    image.dataset.asset = asset.id;
    image.loading = "lazy";
    image.src = imageUrl(asset, 64);
  }
}

// Tell screen readers about a job that has just ended.
function announceEnd(before, after) {
  if (isFinal(before.job.status) || !isFinal(after.job.status)) return;
  byId("announcement").textContent = STATES[after.job.status] + ": " + after.prompt.slice(0, 80);
}

// The times of unfinished jobs grow without a change at the shim.
function renderTimes() {
  for (const { data, row } of entries.values()) {
    if (!isFinal(data.job.status)) row.querySelector(".taken > :last-child").textContent = takenText(data);
  }
}
