// Texts for durations, costs and times.

const STATES = { queued: "queued", pending: "queued", "warming-up": "cold start", "in-progress": "running",
  finalizing: "storing", success: "done", failure: "failed", canceled: "canceled" };
const UNFINISHED = ["queued", "pending", "warming-up", "in-progress", "finalizing"];

const isFinal = (status) => !UNFINISHED.includes(status);

function durationText(seconds) {
  if (seconds === undefined) return "";
  if (seconds < 10) return seconds.toFixed(1) + " s";
  if (seconds < 60) return Math.round(seconds) + " s";
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return minutes + " min " + Math.round(seconds % 60) + " s";
  return Math.floor(minutes / 60) + " h " + (minutes % 60) + " min";
}

// The time of a job so far, or its whole time.
function takenText(entry) {
  if (!isFinal(entry.job.status)) return durationText(Math.max(0, now() - Date.parse(entry.createdAt)) / 1000);
  return durationText(entry.wholeSeconds);
}

const dollars = (usd) => "$" + usd.toFixed(4);
const unitsText = (units) => units + (units === 1 ? " unit" : " units");

function costText(entry) {
  if (entry.usd !== undefined) return dollars(entry.usd);
  if (entry.estimatedUsd !== undefined) return "≈ " + dollars(entry.estimatedUsd);
  return entry.creativeUnits === undefined ? "" : unitsText(entry.creativeUnits);
}

function whenText(date) {
  const isToday = date.toDateString() === new Date().toDateString();
  const day = isToday ? {} : { day: "numeric", month: "short" };
  return date.toLocaleString(undefined, { ...day, hour: "2-digit", minute: "2-digit" });
}

function sizeText(entry) {
  const { width, height } = entry.assets[0]?.properties || {}, asked = entry.job.metadata.input;
  const [w, h] = width ? [width, height] : [asked.width, asked.height];
  return w && h ? w + " × " + h : "";
}

const sideText = (side) => (side === "scenario" ? "Scenario" : "own");
const seedOf = (entry, asset) => asset?.metadata.seed ?? entry.job.metadata.input.seed;

// The address of an asset's image at the address of this page, which may differ from the shim's public URL.
function imageUrl(asset, width) {
  const url = new URL(asset.url, location);
  return url.pathname + url.search + (width ? "&width=" + width : "");
}

function count(number, noun) {
  return number + " " + noun + (number === 1 ? "" : "s");
}
