// Requests one image as SillyTavern's RunPod backend does: the request has no Content-Type of JSON, and the loop ignores
// the job's status and reads `output.images[0]` as soon as the job has an `output`.
// Prints the image, and how many responses had an `output` without an image.
const [endpoint, key, pollMs, graph] = process.argv.slice(2);
const headers = { Authorization: `Bearer ${key}` };

async function call(path, options) {
  const response = await fetch(endpoint + path, { headers, ...options });
  if (!response.ok) throw new Error(`${path}: ${response.status} ${await response.text()}`);
  return response.json();
}

const { id } = await call("/run", { method: "POST", body: JSON.stringify({ input: { workflow: JSON.parse(graph) } }) });
let image;
let outputsWithoutImage = 0;
while (!image) {
  const job = await call(`/status/${id}`);
  if (job.output) {
    image = job.output.images[0];
    outputsWithoutImage += image ? 0 : 1;
  }
  if (!image) await new Promise((resolve) => setTimeout(resolve, Number(pollMs)));
}
console.log(JSON.stringify({ outputsWithoutImage, filename: image.filename, data: image.data }));
