"""`comfy-client batch`: flags, checks before the first job, output, and exit status."""

from __future__ import annotations

import json
import shutil
import threading
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from comfy_client.batch.destination import UPLOAD_TIMEOUT_S, BucketDestination, bucket_destination
from comfy_client.batch.journal import MADE, Journal, JournalEntry, read_entries
from comfy_client.batch.manifest import GALLERY, MANIFEST, manifest_of, read_previous, write_manifest
from comfy_client.batch.plan import AssetPlan, read_plan
from comfy_client.batch.run import AssetOutcome, Batch, BatchSettings, without_image
from comfy_client.cli.call import JSON, Call, Command, status_of
from comfy_client.cli.flags import Flag, UsageError, parse_count, parse_seconds
from comfy_client.cli.progress import CountDisplay
from comfy_core.contract import JsonObject
from comfy_core.errors import ComfyClientError, ConfigError
from comfy_core.request.encoded import is_url
from comfy_core.workflows import Workflow

JOURNAL_FILE = Path(".batch", "journal.jsonl")
_DEFAULT_SIDE = 1024
_PNG_BYTES_PER_PIXEL, _LOSSY_BYTES_PER_PIXEL = 1.5, 0.4
"""Approximate size of an image file, per pixel."""
_SWITCH = {"action": "store_true"}
FLAGS: Sequence[Flag] = (
    Flag(("file",), "The file that describes the assets (docs/assets.md).", "assets.toml", {"type": Path}),
    Flag(
        ("--out",),
        "Output folder, or s3://bucket/prefix (needs the BUCKET_* variables; images are also stored in .batch-GAME). "
        "[default assets/GAME]",
        "DIR|s3://…",
    ),
    Flag(
        ("--type",),
        "Only make assets of this type, and the assets that they start from. Can be repeated.",
        "TYPE",
        {"action": "append", "default": []},
    ),
    Flag(("--concurrency",), "Number of concurrent jobs. [default 4]", "N", {"type": parse_count, "default": 4}),
    Flag(("--dry-run",), "Show the planned assets without making or writing anything.", settings=_SWITCH),
    Flag(
        ("--resend-unsure",),
        "Resubmit jobs that an interrupted run may already have submitted. They may run and be billed twice.",
        settings=_SWITCH,
    ),
    Flag(
        ("--cancel",),
        "Cancel running jobs on Ctrl-C. [default: they continue, and the next run collects them]",
        settings=_SWITCH,
    ),
    Flag(
        ("--upload-timeout",),
        f"Timeout for the upload of one file. [default {UPLOAD_TIMEOUT_S:g}]",
        "SECONDS",
        {"type": parse_seconds, "default": UPLOAD_TIMEOUT_S},
    ),
)


def commands(_workflows: Mapping[str, Workflow]) -> tuple[Command, ...]:
    """Return the command `batch`."""
    return (Command("batch", [*FLAGS, JSON], run),)


def run(call: Call) -> int:
    """Make the assets and return the exit status: 0 if all have an image, else the highest status of the errors.

    With --dry-run, only show the plan. If the run is interrupted, return the status of the signal.
    """
    options = call.options
    full_plan = read_plan(_toml(options.file), call.workflows)
    plan = full_plan.only(options.type)
    destination, folder = _output_places(call, plan)
    previous = read_previous(folder, plan.game)
    if options.dry_run:
        return _show_plan(call, plan, read_entries(folder / JOURNAL_FILE))
    with call.client() as client, Journal(folder / JOURNAL_FILE) as journal:

        def manifest(outcomes: Sequence[AssetOutcome] = ()) -> JsonObject:
            return manifest_of(full_plan, outcomes, journal.entries, previous)

        _check(plan, folder, destination, journal.entries)
        write_manifest(folder, manifest())
        settings = BatchSettings(options.concurrency, options.resend_unsure, options.cancel)
        batch = Batch(client, journal, folder, settings, destination)
        try:
            total = len(plan.assets)
            with call.screen.count_bar(total, "images") or _BatchLog(call, total) as progress:
                outcomes = batch.run(plan, lambda each: progress.count(f"{each.asset.path}: {each.outcome}"))
        except KeyboardInterrupt as interrupt:
            write_manifest(folder, manifest())
            then = "were cancelled" if options.cancel else "continue; run the same command to collect them"
            call.screen.interrupted(f"Interrupted: finished images are kept; running jobs {then}.")
            return status_of(interrupt)
        final_manifest = manifest(outcomes)
        write_manifest(folder, final_manifest)
        if destination is not None:
            _publish(destination, folder)
    return _show_summary(call, outcomes, final_manifest, folder)


def _toml(file: Path) -> JsonObject:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from error


def _output_places(call: Call, plan: AssetPlan) -> tuple[BucketDestination | None, Path]:
    """Return the bucket that --out names, or None, and the folder for images and journal."""
    out = call.options.out
    if out is None:
        return None, Path("assets", plan.game)
    if is_url(out) and not out.startswith("s3://"):
        raise UsageError(f"--out {out}: the only supported URL is s3://bucket/prefix")
    if out.startswith("s3://"):
        destination = bucket_destination(out, call.environment, call.options.upload_timeout)
        return destination, Path(f".batch-{plan.game}")
    return None, Path(out)


def _check(
    plan: AssetPlan, folder: Path, destination: BucketDestination | None, entries: Mapping[str, JournalEntry]
) -> None:
    """Raise ConfigError or JobError if the disk has too little space or the bucket does not work."""
    new = [asset.input for asset in plan.assets if entries.get(asset.digest, JournalEntry()).state != MADE]
    needed_bytes = sum(
        each.get("width", _DEFAULT_SIDE)
        * each.get("height", _DEFAULT_SIDE)
        * (_PNG_BYTES_PER_PIXEL if each.get("output_format", "png") == "png" else _LOSSY_BYTES_PER_PIXEL)
        for each in new
    )
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise ConfigError(
            f"{folder} has {free_bytes / 1e6:,.1f} MB free, and {len(new)} images need about "
            f"{needed_bytes / 1e6:,.1f} MB. "
            "Nothing was sent. Free some space, or use another folder with --out"
        )
    if destination is not None and new:
        destination.check()


def _publish(destination: BucketDestination, folder: Path) -> None:
    """Upload the manifest and the gallery next to the images."""
    for name, mime_type in ((MANIFEST, "application/json"), (GALLERY, "text/html; charset=utf-8")):
        destination.put(name, (folder / name).read_bytes(), mime_type)


def _show_plan(call: Call, plan: AssetPlan, entries: Mapping[str, JournalEntry]) -> int:
    states = {asset.path: entries.get(asset.digest, JournalEntry()).state or "new" for asset in plan.assets}
    lines = []
    for asset in plan.assets:
        source = f"from {asset.source}: " if asset.source else ""
        lines.append(f"{asset.path:32}{states[asset.path]:10}{asset.kind:14}{source}{asset.prompt}")
    value = {"game": plan.game, "assets": [{"id": path, "state": state} for path, state in states.items()]}
    call.screen.show(value, *lines, f"{len(plan.assets)} images; nothing was sent")
    return 0


def _show_summary(call: Call, outcomes: Sequence[AssetOutcome], manifest: JsonObject, folder: Path) -> int:
    counts = Counter(each.outcome for each in outcomes)
    problems = list(without_image(outcomes))
    lines = [f"!! {each.asset.path}: {each.error or each.outcome}" for each in problems]
    summary = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    cost = "" if manifest["cost_usd"] is None else f"; ${manifest['cost_usd']:.4f} of GPU time in all"
    lines.append(f"{summary}{cost}. Gallery: {folder / GALLERY}")
    value = {**manifest, "counts": dict(counts), "folder": str(folder)}
    if problems:
        first_error = next((each.error for each in problems if each.error), None)
        if first_error is not None:
            value["error"] = json.loads(first_error.report.to_json())
    call.screen.show(value, *lines)
    statuses = [each.error.exit_status if isinstance(each.error, ComfyClientError) else 1 for each in problems]
    return max(statuses, default=0)


class _BatchLog(CountDisplay):
    """Writes a line for each finished asset, or nothing with --json."""

    def __init__(self, call: Call, total: int) -> None:
        super().__init__(call.screen.err)
        self._is_shown = not call.screen.is_json
        self._total = total
        self._done = 0
        self._lock = threading.Lock()

    def count(self, line: str) -> None:
        """Write a line about an asset. Thread-safe."""
        with self._lock:
            self._done += 1
            if self._is_shown:
                self.say(f"{self._done} of {self._total}  {line}")
