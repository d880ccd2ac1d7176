"""Generates docs/worker-comfyui.md from the requests and the recorded responses in tools/stock_worker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tools.docs.api import NOTE
from tools.stock_worker.cases import CASES
from tools.stock_worker.recordings import STOCK_WORKER, THIS_WORKER, Verdict, recorded, source_of, verdict

INTRODUCTION = """\
# Coming from worker-comfyui

{note}

What differs from RunPod's stock worker, for those who call worker-comfyui today.

Callers of RunPod's stock [worker-comfyui](https://github.com/runpod-workers/worker-comfyui) send the same requests
to the same routes, and find the images in the same place: `output.images[]` with `filename`, `type` and `data`. They
change only the endpoint's id. A test sends every request below to this worker; the
responses of worker-comfyui were recorded from {about}.

These callers are tested too: SillyTavern's loop, the `curl` of worker-comfyui's README, the request bodies of n8n and
Zapier (null for an empty field, numbers as text), and the ComfyUI client of hassoncs/clover.

A caller that reads `images[].image` instead of `images[].data` gets it with `WORKER_IMAGE_FIELD=image` (or `both`).
"""

GENERAL_DIFFERENCES = (
    (
        "`output` of a running job",
        "none",
        'its progress: `{"images": [], "stage": "sampling", …}`; `images` stays empty until the job has ended',
    ),
    ("keys of a result", "`images`, `errors`", "more ([api.md](api.md)); `warnings` instead of `errors`"),
    ("outputs that ComfyUI lists under another key than `images`", "ignored", "under `files` and `texts`"),
    ("a failure's `error`", "a sentence", "JSON text with a stable `code` ([errors.md](errors.md))"),
    ("`output` of a failed job", "`details` for some errors", "none"),
    ("a job that fails halfway", "COMPLETED, with the images so far and `errors`", "FAILED"),
    ("a result over RunPod's limit", "COMPLETED without `output`", "`output_too_large`, or a bucket"),
    ("the longest job", "no limit", "`WORKER_JOB_TIMEOUT_S`, 300 s; `timeout_s` of a request shortens it"),
    ("metadata in a PNG", "none", "the graph; `metadata: false` omits it"),
    ("AI mark in XMP", "none", "IPTC's DigitalSourceType; `ai_mark: false` omits it"),
    ("files of a job", "stay; later jobs can load and overwrite them", "are deleted when the job ends"),
    ("values that lead out of ComfyUI's folders", "passed to ComfyUI", "refused"),
    ("image formats", "what the graph saves", "`output_format` and `output_quality` change PNGs to WebP or JPEG"),
)
"""Differences that do not depend on the graph: the subject, worker-comfyui's behaviour, and this worker's."""

VARIABLE_DIFFERENCES = (
    (
        "`BUCKET_ENDPOINT_URL`",
        "the URL, with the bucket",
        "the same; `BUCKET_NAME` only if the URL does not contain the bucket",
    ),
    ("`BUCKET_ACCESS_KEY_ID`, `BUCKET_SECRET_ACCESS_KEY`", "the bucket's keys", "the same"),
    ("`COMFY_ORG_API_KEY`", "a default key for API nodes", "not read: send `comfy_org_api_key` with a request"),
    ("`SERVE_API_LOCALLY`", "a local API on port 8000", "the same; the port is `WORKER_API_PORT`"),
    ("`COMFY_LOG_LEVEL`", "ComfyUI's log level", "not read: `WORKER_LOG_LEVEL` at DEBUG includes ComfyUI's log"),
    ("`REFRESH_WORKER`", "read, but without effect since 5.0", "not read: each job's files are deleted"),
    (
        "`WEBSOCKET_RECONNECT_ATTEMPTS`, `WEBSOCKET_RECONNECT_DELAY_S`, `WEBSOCKET_TRACE`",
        "reconnecting",
        "not read: the worker always reconnects",
    ),
    ("`NETWORK_VOLUME_DEBUG`", "lists the volume's models in the log", "not read: the boot's log names missing models"),
    ("`PUBLIC_KEY`", "starts an SSH server", "not read: the image has no SSH server"),
)


def worker_comfyui_page() -> Iterator[str]:
    """Yield the parts of docs/worker-comfyui.md."""
    stock, ours = recorded(STOCK_WORKER), recorded(THIS_WORKER)
    yield INTRODUCTION.format(note=NOTE, about=source_of(STOCK_WORKER))
    rows = [(case, stock[case.title], ours[case.title]) for case in CASES]
    verdicts = {case.title: verdict(stock_outcome, our_outcome) for case, stock_outcome, our_outcome in rows}
    differing = [
        f"| {case.title} | {outcome_cell(stock_outcome)} | {outcome_cell(our_outcome)} | {case.why} |"
        for case, stock_outcome, our_outcome in rows
        if verdicts[case.title] is Verdict.DIFFERENT
    ]
    yield "## Requests with different responses\n"
    yield _table("| request | worker-comfyui | this worker | why |", differing)
    yield "## Other differences\n"
    yield _table("| | worker-comfyui | this worker |", [f"| {' | '.join(row)} |" for row in GENERAL_DIFFERENCES])
    yield "## Variables\n"
    yield _table(
        "| variable | worker-comfyui | this worker |", [f"| {' | '.join(row)} |" for row in VARIABLE_DIFFERENCES]
    )
    yield "## Requests that fail on both\n"
    failing = [
        f"| {case.title} | {outcome_cell(stock_outcome)} | {outcome_cell(our_outcome)} |"
        for case, stock_outcome, our_outcome in rows
        if verdicts[case.title] is Verdict.BOTH_FAIL
    ]
    yield _table("| request | worker-comfyui | this worker |", failing)
    for title, verdict_of_section in (
        ("## Requests with the same response", Verdict.SAME),
        ("## Requests that only this worker accepts", Verdict.ONLY_OURS),
    ):
        yield f"{title}\n"
        yield "".join(f"- {case.title}\n" for case in CASES if verdicts[case.title] is verdict_of_section)


def outcome_cell(outcome: dict[str, Any]) -> str:
    """Return an outcome as Markdown for a table cell."""
    if outcome["status"] == "FAILED":
        error = str(outcome["error"]).replace("|", "\\|")
        return f"FAILED: `{error}`"
    images = ", ".join(f"`{image['filename']}` ({image['data']})" for image in outcome["images"])
    return f"COMPLETED: {images or 'no image'}"


def _table(head: str, rows: list[str]) -> str:
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *rows]) + "\n"
