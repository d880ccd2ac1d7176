// Runs a Worker in workerd with an R2 bucket IMAGES, sends it one request, and writes the response's body to a file:
// node run.mjs WORKER.mjs QUERY BODY OUTPUT. BODY is a file that is POSTed, or empty for a GET. The Worker gets the
// environment's variables that begin with SCENARIO_. Prints the keys of the bucket.
import { readFile, writeFile } from "node:fs/promises";
import { Miniflare } from "miniflare";

const [worker, query, body, output] = process.argv.slice(2);
const bindings = Object.fromEntries(Object.entries(process.env).filter(([name]) => name.startsWith("SCENARIO_")));
const runtime = new Miniflare({
  modules: true,
  script: await readFile(worker, "utf8"),
  compatibilityDate: "2025-01-01",
  bindings,
  r2Buckets: ["IMAGES"],
});
try {
  const response = await runtime.dispatchFetch(`http://worker/${query}`, body ? { method: "POST", body: await readFile(body) } : {});
  if (!response.ok) throw new Error(`${response.status}: ${await response.text()}`);
  await writeFile(output, Buffer.from(await response.arrayBuffer()));
  const { objects } = await (await runtime.getR2Bucket("IMAGES")).list();
  console.log(objects.map(({ key }) => key).join(" "));
} finally {
  await runtime.dispose();
}
