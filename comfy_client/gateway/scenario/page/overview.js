// The facts at the top of the page, the callers and the routing table.

let me = { id: "", name: "" }, hasScenario = false;

async function loadOverview() {
  const overview = await request("/shim/overview");
  live.overviewAt = Date.now() + OVERVIEW_MS;
  me = overview.caller;
  hasScenario = overview.hasScenario;
  const { health, cost, scenario } = overview, dot = document.createElement("span");
  dot.className = "dot " + ({ idle: "good", busy: "good", cold: "wait", unreachable: "bad", unhealthy: "bad" }[health.why] || "wait");
  byId("health").replaceChildren(dot, health.sentence);
  const isPriced = cost.usd !== null;
  showAmount(byId("own-cost"), isPriced ? dollars(cost.usd) : "", (isPriced ? " for " : "") + count(cost.jobs, "job") + ", " + cost.seconds + " s of GPU time");
  showAmount(byId("scenario-cost"), unitsText(scenario.creative_units), " at Scenario for " + count(scenario.jobs, "job"));
  const hasSides = hasScenario || scenario.jobs > 0;
  byId("scenario-cost").hidden = byId("side-filter").hidden = !hasSides;
  document.body.classList.toggle("one-side", !hasSides);
  byId("caller").textContent = me.isAdmin ? me.name + " (all callers)" : me.name;
  showCallers(overview.callers);
  showRouting(overview.routing);
}

function showAmount(element, amount, rest) {
  const bold = document.createElement("b");
  bold.textContent = amount;
  element.replaceChildren(bold, rest);
}

function showCallers(callers) {
  const select = byId("filter").caller, known = new Set([...select.options].map((option) => option.value));
  const chosen = readFilter().get("caller");
  for (const { id, name } of callers) if (!known.has(id)) select.add(new Option(name, id, false, id === chosen));
  byId("caller-filter").hidden = callers.length < 2;
  document.body.classList.toggle("one-caller", callers.length < 2);
}

function showRouting(rules) {
  byId("routing").hidden = !hasScenario && !rules.length;
  const note = hasScenario ? "What this table does not name is served by your endpoint. What the server does not support goes to Scenario."
    : "Every request is served by your endpoint, because the server has no key of Scenario.";
  byId("routing-note").textContent = note;
  byId("routing").querySelector("table").hidden = !rules.length;
  byId("routing").querySelector("tbody").replaceChildren(...rules.map(newRule));
}

function newRule({ capability, side, percent }) {
  const row = document.createElement("tr"), own = side === "own" ? percent : 100 - percent;
  const name = capability === "*" ? "other generate calls" : capability;
  for (const text of [name, own + " %", 100 - own + " %"]) row.insertCell().textContent = text;
  return row;
}
