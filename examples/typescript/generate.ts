// Generates an image with the Scenario shim and downloads it: node generate.js PROMPT FILE.
import { writeFile } from "node:fs/promises";
import createClient from "openapi-fetch";
import type { components, paths } from "./shim.js";

type Job = components["schemas"]["Job"];

const { SCENARIO_BASE_URL = "", SCENARIO_SDK_API_KEY, SCENARIO_SDK_API_SECRET } = process.env;
const [prompt = "a pixel art knight", file = "image.png"] = process.argv.slice(2);
const credentials = Buffer.from(`${SCENARIO_SDK_API_KEY}:${SCENARIO_SDK_API_SECRET}`).toString("base64");
const shim = createClient<paths>({ baseUrl: SCENARIO_BASE_URL, headers: { Authorization: `Basic ${credentials}` } });

async function ended(jobId: string): Promise<Job> {
  for (;;) {
    const { data, error } = await shim.GET("/jobs/{jobId}", { params: { path: { jobId } } });
    if (error) throw new Error(error.reason);
    const { status, progress } = data.job;
    if (status === "success" || status === "failure" || status === "canceled") return data.job;
    console.log(`${status} ${Math.round(progress * 100)} %`);
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

const made = await shim.POST("/generate/txt2img", {
  body: { modelId: "flux.1-dev", prompt, width: 512, height: 512, numInferenceSteps: 4 },
});
if (made.error) throw new Error(made.error.reason);
const { status, metadata } = await ended(made.data.job.jobId);
const [assetId] = metadata.assetIds;
if (status !== "success" || !assetId) throw new Error(metadata.error ?? status);
const { data, error } = await shim.GET("/assets/{assetId}", { params: { path: { assetId } } });
if (error) throw new Error(error.reason);
await writeFile(file, Buffer.from(await (await fetch(data.asset.url)).arrayBuffer()));
console.log(`${file}: ${data.asset.mimeType}, ${data.asset.metadata.seed}, ${made.data.creativeUnitsCost} units`);
