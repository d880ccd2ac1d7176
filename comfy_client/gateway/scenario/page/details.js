// The details of a job below its row, and what can be done with the job.

// The caller for whom a request about a job is made: its own caller, if that is not this one. Everybody sees Scenario's.
function callerOf(entry) {
  const owner = entry.data.caller.id;
  return owner === me.id || owner === "scenario" ? "" : owner;
}

// Fill the details of an open row. They are made when they are opened for the first time.
function renderDetails(entry) {
  const details = entry.row.querySelector("details");
  if (!details.open) return;
  if (!details.querySelector(".more")) details.append(newDetails(entry));
  const more = details.querySelector(".more"), { data } = entry, { job } = data;
  more.querySelector(".full-prompt").textContent = data.prompt;
  showText(more.querySelector(".error"), errorText(data));
  showProgress(more.querySelector("progress"), job);
  renderPictures(entry, more.querySelector(".pictures"));
  renderFacts(more.querySelector("dl"), data);
  more.querySelector(".cancel").hidden = isFinal(job.status);
  more.querySelector(".delete").hidden = !isFinal(job.status);
}

function newDetails(entry) {
  const more = byId("details").content.firstElementChild.cloneNode(true), message = more.querySelector(".message");
  const on = (name, action) => { more.querySelector("." + name).onclick = (event) => attempt(event.currentTarget, message, action); };
  on("again-new", () => runAgain(entry, "new"));
  on("again-same", () => runAgain(entry, "same"));
  on("to-form", () => copyToForm(entry));
  on("copy-prompt", (button) => copy(entry.data.prompt, button));
  on("copy-link", (button) => copy(location.origin + location.pathname + "#search=" + entry.data.job.jobId, button));
  on("cancel", () => post("/jobs/" + entry.data.job.jobId + "/action", { action: "cancel" }, { caller: callerOf(entry) }));
  on("delete", () => deleteJob(entry));
  return more;
}

// Run an action of a button. The button is disabled meanwhile, and `message` shows an error. The list is updated after it.
async function attempt(button, message, action) {
  button.disabled = true;
  showText(message, "");
  try {
    await action(button);
  } catch (error) {
    showText(message, error.message);
  } finally {
    button.disabled = false;
  }
  await update();
}

async function runAgain(entry, seed) {
  await post("/shim/jobs/" + entry.data.job.jobId + "/again", { seed }, { caller: callerOf(entry) });
  window.scrollTo({ top: 0 });
}

async function deleteJob(entry) {
  const assetIds = entry.data.assets.map((asset) => asset.id), { length } = assetIds;
  const images = length ? " and its " + (length > 1 ? length + " images" : "image") : "";
  const scenario = hasScenario && length ? " Images that are also at Scenario are deleted there too." : "";
  if (!(await confirmed("Delete this job" + images + "?" + scenario))) return;
  const options = { caller: callerOf(entry) };
  if (length) await del("/assets", { ...options, body: { assetIds } });
  await del("/shim/jobs/" + entry.data.job.jobId, options);
  focusNextTo(entry.row);
  removeJob(entry.data.job.jobId);
}

async function deleteImage(entry, asset) {
  const scenario = hasScenario ? " If it is also at Scenario, it is deleted there too." : "";
  if (!(await confirmed("Delete this image?" + scenario))) return false;
  await del("/assets", { caller: callerOf(entry), body: { assetIds: [asset.id] } });
  entry.data.assets = entry.data.assets.filter((each) => each.id !== asset.id);
  renderRow(entry);
  return true;
}

function focusNextTo(row) {
  (row.nextElementSibling || row.previousElementSibling)?.querySelector("summary").focus();
}

function confirmed(question) {
  const dialog = byId("confirm");
  byId("confirm-text").textContent = question;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true }));
}

function errorText({ job, remedy }) {
  const error = job.metadata.error || job.error;
  return error ? error + (remedy ? " " + remedy : "") : "";
}

function renderPictures(entry, box) {
  const ids = entry.data.assets.map((asset) => asset.id).join();
  if (box.dataset.ids === ids) return;
  box.dataset.ids = ids;
  box.replaceChildren(...entry.data.assets.map((asset) => newPicture(entry, asset)));
}

function newPicture(entry, asset) {
  const figure = byId("picture").content.firstElementChild.cloneNode(true), image = figure.querySelector("img");
  const message = entry.row.querySelector(".message"), save = figure.querySelector(".save");
  image.src = imageUrl(asset, 512);
  image.alt = entry.data.prompt;
  figure.querySelector(".open").setAttribute("aria-label", "Full size: " + entry.data.prompt);
  figure.querySelector(".open").onclick = () => openViewer(entry, asset);
  figure.querySelector(".fact").textContent = "seed " + (seedOf(entry.data, asset) ?? "?");
  figure.querySelector(".use").onclick = () => useAsInput(entry, asset);
  figure.querySelector(".remove").onclick = (event) => attempt(event.currentTarget, message, () => deleteImage(entry, asset));
  setDownload(save, asset);
  return figure;
}

function setDownload(link, asset) {
  link.href = imageUrl(asset);
  link.download = asset.metadata.name || asset.id + ".png";
}

function renderFacts(list, data) {
  const { job } = data, { input } = job.metadata;
  const missing = isFinal(job.status) ? job.metadata.assetIds.length - data.assets.length : 0;
  const facts = {
    Job: job.jobId, "Endpoint's job": job.metadata.endpointJobId, Images: job.metadata.assetIds.join(", "),
    Missing: missing > 0 && !copying.size ? count(missing, "image") + " not here: deleted, or not an image" : "",
    Seed: seedOf(data, data.assets[0]), Model: input.modelId, Steps: input.numInferenceSteps, Guidance: input.guidance,
    User: input.openai?.user, Strength: input.strength, "Start image": input.image, Side: data.side === "scenario" ? "Scenario" : "own endpoint", Caller: data.caller.name,
    Started: new Date(data.createdAt).toLocaleString(), Queue: durationText(data.queueSeconds), Run: durationText(data.runSeconds),
    "Time taken": durationText(data.wholeSeconds), Cost: costText(data), "Error code": job.metadata.errorCode, Note: job.metadata.hint,
  };
  const shown = Object.entries(facts).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const text = JSON.stringify(shown);
  if (list.dataset.text === text) return;
  list.dataset.text = text;
  list.replaceChildren(...shown.map(([name, value]) => newFact(name, String(value))));
}

function newFact(name, value) {
  const pair = document.createElement("div"), term = document.createElement("dt"), description = document.createElement("dd");
  term.textContent = name;
  description.textContent = value;
  if (["Job", "Seed", "Images"].includes(name)) description.append(" ", newCopyButton(name, value));
  pair.append(term, description);
  return pair;
}

function newCopyButton(name, value) {
  const button = document.createElement("button");
  button.className = "link";
  button.textContent = "Copy";
  button.setAttribute("aria-label", "Copy " + name.toLowerCase());
  button.onclick = () => copy(value, button);
  return button;
}
