// The form for a new job, and its start image.

const MODEL = "model_bfl-flux-1-dev";
let startImage = null; // { assetId, caller }: an image of the shim

function showMessage(text, isBad = true) {
  showText(byId("message"), text);
  byId("message").className = "message" + (isBad ? " bad" : "");
}

// Make an image the start image of the next job.
function useAsInput(entry, asset) {
  startImage = { assetId: asset.id, caller: callerOf(entry) };
  byId("form").file.value = "";
  if (!byId("form").prompt.value) byId("form").prompt.value = entry.data.prompt;
  const whose = startImage.caller ? ", for " + entry.data.caller.name : "";
  showStartImage(imageUrl(asset, 64), asset.id + whose);
  showForm();
}

// Show the start image and the fields that only apply with one. Without a URL, hide them.
function showStartImage(url, text) {
  const form = byId("form"), box = byId("start-image"), sameSize = [...form.size.options].find((option) => !option.value);
  box.hidden = byId("strength").hidden = !url;
  sameSize.disabled = sameSize.hidden = !url;
  if (url) {
    box.querySelector("img").src = url;
    box.querySelector("span").textContent = text;
    form.size.value = "";
  } else if (!form.size.value) form.size.selectedIndex = 0;
}

function removeStartImage() {
  startImage = null;
  byId("form").file.value = "";
  showStartImage("");
}

async function fileChosen() {
  const file = byId("form").file.files[0];
  if (!file) return removeStartImage();
  startImage = null;
  return showStartImage(await dataUrl(file), file.name);
}

function dataUrl(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(new Error("The image file cannot be read."));
    reader.readAsDataURL(file);
  });
}

// Fill the form with the values of a job.
function copyToForm(entry) {
  const form = byId("form"), { input } = entry.data.job.metadata, [width, height] = [input.width, input.height];
  removeStartImage();
  form.prompt.value = entry.data.prompt;
  if (width && height) {
    const size = width + "x" + height;
    if (![...form.size.options].some((option) => option.value === size)) form.size.add(new Option(width + " × " + height, size));
    form.size.value = size;
  }
  form.numOutputs.value = input.numOutputs || input.numSamples || 1;
  form.numInferenceSteps.value = input.numInferenceSteps || 28;
  form.guidance.value = input.guidance ?? 3.5;
  form.seed.value = seedOf(entry.data, entry.data.assets[0]) ?? "";
  showForm();
}

function showForm() {
  byId("new").open = true;
  byId("form").prompt.focus();
}

// Store the chosen file as a hidden asset, so that the job can run again with it. Return the start image or null.
async function storedStartImage(file) {
  if (!file) return startImage;
  const body = { name: file.name, image: await dataUrl(file), hide: true };
  const stored = await post("/assets", body);
  return { assetId: stored.asset.id, caller: "" };
}

async function generate() {
  const form = byId("form"), [width, height] = form.size.value.split("x").map(Number);
  const body = { prompt: form.prompt.value, numOutputs: Number(form.numOutputs.value),
    numInferenceSteps: Number(form.numInferenceSteps.value), guidance: Number(form.guidance.value) };
  if (height) Object.assign(body, { width, height });
  if (form.seed.value) body.seed = form.seed.value;
  const image = await storedStartImage(form.file.files[0]);
  if (image) Object.assign(body, { image: image.assetId, strength: Number(form.strength.value) });
  const { job } = await post("/generate/custom/" + MODEL, body, { caller: image?.caller });
  await update();
  showMessage(entries.has(job.jobId) ? "" : "The job was started. The filter does not show it.", false);
}

function prepareForm() {
  const form = byId("form");
  form.file.onchange = () => fileChosen().catch((error) => showMessage(error.message));
  form.strength.oninput = () => { byId("strength").querySelector("output").textContent = form.strength.value; };
  byId("start-image").querySelector("button").onclick = removeStartImage;
  form.onsubmit = (event) => {
    event.preventDefault();
    attempt(form.querySelector("button.main"), byId("message"), generate);
  };
}
