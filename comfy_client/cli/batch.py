"""`comfy-client batch`: its flags, the checks before its first job, what it shows, and its exit status."""

from __future__ import annotations

import json
import shutil
import threading
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from comfy_client.batch.destination import UPLOAD_TIMEOUT_S, BucketDestination, bucket_destination
from comfy_client.batch.journal import MADE, Journal, JournalEntry, read_entries
from comfy_client.batch.manifest import GALLERY, MANIFEST, manifest_of, read_before, write
from comfy_client.batch.plan import AssetPlan, read_plan
from comfy_client.batch.run import AssetOutcome, Batch, BatchSettings, failures
from comfy_client.cli.call import JSON, Call, Command, status_of
from comfy_client.cli.flags import Flag, UsageError, count, is_address, price, seconds
from comfy_client.cli.progress import Progress, Ticking, columns_of
from comfy_client.prices import DEFAULT_POOL, POOLS
from comfy_core.contract import JsonObject
from comfy_core.errors import ComfyClientError, ConfigError
from comfy_core.workflows import Workflow

STATE = Path(".batch", "journal.jsonl")
_SIDE = 1024
_PNG_BYTES, _LOSSY_BYTES = 1.5, 0.4
"""What a pixel takes on the disk, about."""
_SWITCH = {"action": "store_true"}
FLAGS: Sequence[Flag] = (
    Flag(("file",), "The assets, as docs/assets.md has them.", "assets.toml", {"type": Path}),
    Flag(
        ("--out",),
        "A folder, or s3://bucket/prefix (with the variables BUCKET_*; the pictures are kept in .batch-GAME too). "
        "[default assets/GAME]",
        "DIR|s3://…",
    ),
    Flag(
        ("--type",),
        "Make only this type, and what it starts from; may be repeated.",
        "TYPE",
        {"action": "append", "default": []},
    ),
    Flag(("--concurrency",), "Pictures at once. [default 4]", "N", {"type": count, "default": 4}),
    Flag(("--dry-run",), "Show what would be made. Makes and writes nothing.", settings=_SWITCH),
    Flag(
        ("--resend-unsure",),
        "Send pictures again whose jobs may have been sent when an earlier run was killed.",
        settings=_SWITCH,
    ),
    Flag(("--cancel",), "Cancel running jobs on Ctrl-C. [default: the next run picks them up]", settings=_SWITCH),
    Flag(
        ("--upload-timeout",),
        f"Give up a file's upload after this time. [default {UPLOAD_TIMEOUT_S:g}]",
        "SECONDS",
        {"type": seconds, "default": UPLOAD_TIMEOUT_S},
    ),
    Flag(("--usd-per-s",), f"Price of a worker's second. [default: that of {DEFAULT_POOL}]", "X", {"type": price}),
)


def commands(_workflows: Mapping[str, Workflow]) -> tuple[Command, ...]:
    """Return the command."""
    return (Command("batch", [*FLAGS, JSON], run),)


def run(call: Call) -> int:
    """Make the pictures. Returns 0 if all are there, 1 if some are not; errors have their own status."""
    options = call.options
    whole = read_plan(_toml(options.file), call.workflows)
    plan = whole.only(options.type)
    destination, folder = _places(call, plan)
    before = read_before(folder, plan.game)
    if options.dry_run:
        return _show_plan(call, plan, read_entries(folder / STATE))
    rate = POOLS[DEFAULT_POOL].flex_usd_per_s if options.usd_per_s is None else options.usd_per_s
    with call.client() as client, Journal(folder / STATE) as journal:

        def manifest(made: Sequence[AssetOutcome] = ()) -> JsonObject:
            return manifest_of(whole, made, journal.entries, rate, before)

        _check(plan, folder, destination, journal.entries)
        write(folder, manifest())
        settings = BatchSettings(options.concurrency, options.resend_unsure, options.cancel)
        batch = Batch(client, journal, folder, settings, destination)
        try:
            with _progress(call, len(plan.assets)) as progress:
                made = batch.run(plan, progress.count)
        except KeyboardInterrupt as interrupt:
            write(folder, manifest())
            then = "were cancelled" if options.cancel else "go on; the same command picks them up"
            call.screen.interrupted(f"Interrupted: what was made is kept; jobs under way {then}.")
            return status_of(interrupt)
        told = manifest(made)
        write(folder, told)
        if destination is not None:
            _publish(destination, folder)
    return _show_end(call, made, told, folder)


def _toml(file: Path) -> JsonObject:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error


def _places(call: Call, plan: AssetPlan) -> tuple[BucketDestination | None, Path]:
    """Return the bucket, if one is named, and the folder that keeps pictures and journal."""
    out = call.options.out
    if out is None:
        return None, Path("assets", plan.game)
    if is_address(out) and not out.startswith("s3://"):
        raise UsageError(f"--out {out}: an address other than s3://bucket/prefix is no place for pictures")
    if out.startswith("s3://"):
        destination = bucket_destination(out, call.environment, call.options.upload_timeout)
        return destination, Path(f".batch-{plan.game}")
    return None, Path(out)


def _check(
    plan: AssetPlan, folder: Path, destination: BucketDestination | None, entries: Mapping[str, JournalEntry]
) -> None:
    """Raise ConfigError or JobError for what would stop the run later: too little room, a bucket that does not work."""
    new = [asset.input for asset in plan.assets if entries.get(asset.digest, JournalEntry()).state != MADE]
    needed = sum(
        each.get("width", _SIDE)
        * each.get("height", _SIDE)
        * (_PNG_BYTES if each.get("output_format", "png") == "png" else _LOSSY_BYTES)
        for each in new
    )
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"{folder} has {free / 1e6:,.1f} MB free, and {len(new)} pictures need about {needed / 1e6:,.1f} MB. "
            "Nothing was sent. Make room, or give --out another folder"
        )
    if destination is not None and new:
        destination.check()


def _publish(destination: BucketDestination, folder: Path) -> None:
    """Put the manifest and the gallery beside the pictures."""
    for name, mime_type in ((MANIFEST, "application/json"), (GALLERY, "text/html; charset=utf-8")):
        destination.put(name, (folder / name).read_bytes(), mime_type)


def _show_plan(call: Call, plan: AssetPlan, entries: Mapping[str, JournalEntry]) -> int:
    states = {asset.path: entries.get(asset.digest, JournalEntry()).state or "new" for asset in plan.assets}
    lines = []
    for asset in plan.assets:
        source = f"from {asset.source}: " if asset.source else ""
        lines.append(f"{asset.path:32}{states[asset.path]:10}{asset.kind:14}{source}{asset.prompt}")
    value = {"game": plan.game, "assets": [{"id": path, "state": state} for path, state in states.items()]}
    call.screen.show(value, *lines, f"{len(plan.assets)} pictures; nothing was sent")
    return 0


def _show_end(call: Call, made: Sequence[AssetOutcome], manifest: JsonObject, folder: Path) -> int:
    counts = Counter(each.outcome for each in made)
    problems = list(failures(list(made)))
    lines = [f"!! {each.asset.path}: {each.error or each.outcome}" for each in problems]
    summary = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    cost = "" if manifest["cost_usd"] is None else f"; ${manifest['cost_usd']:.4f} of GPU time in all"
    lines.append(f"{summary}{cost}. {folder / GALLERY} shows them")
    value = {**manifest, "counts": dict(counts), "folder": str(folder)}
    if problems:
        worst = next((each.error for each in problems if each.error), None)
        if worst is not None:
            value["error"] = json.loads(worst.report.to_json())
    call.screen.show(value, *lines)
    statuses = [each.error.exit_status if isinstance(each.error, ComfyClientError) else 1 for each in problems]
    return max(statuses, default=0)


def _progress(call: Call, total: int) -> _Lines | _Bar:
    return _Bar(call, total) if call.screen.err.isatty() and not call.screen.is_json else _Lines(call, total)


class _Lines(Progress):
    """A line for each picture; nothing with --json."""

    def __init__(self, call: Call, total: int) -> None:
        super().__init__(call.screen.err)
        self._is_shown = not call.screen.is_json
        self._total = total
        self._done = 0
        self._lock = threading.Lock()

    def count(self, made: AssetOutcome) -> None:
        """Show a picture that is made, or is not. Called from several threads."""
        with self._lock:
            self._done += 1
            if self._is_shown:
                self.say(f"{self._done} of {self._total}  {made.asset.path}: {made.outcome}")


class _Bar(Ticking):
    """A bar on a terminal."""

    def __init__(self, call: Call, total: int) -> None:
        super().__init__(call.screen.err)
        from tqdm import tqdm  # noqa: PLC0415 - a log needs none

        self._bar: Any = tqdm(total=total, file=call.screen.err, unit="picture", ncols=columns_of(call.screen.err))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._bar.close()

    def tick(self) -> None:
        """Move the clock."""
        self._bar.refresh()

    def count(self, made: AssetOutcome) -> None:
        """Move the bar."""
        self._bar.set_postfix_str(f"{made.asset.path}: {made.outcome}"[:60])
        self._bar.update()
