"""`comfy-client batch`: its flags, what it shows, and its exit status."""

from __future__ import annotations

import os
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from comfy_client.batch.destination import UPLOAD_TIMEOUT_S, BucketDestination, bucket_destination
from comfy_client.batch.journal import Journal
from comfy_client.batch.manifest import GALLERY, MANIFEST, manifest_of, write
from comfy_client.batch.plan import Plan, read_plan
from comfy_client.batch.run import Batch, Made, Settings, failures
from comfy_client.cli.call import INTERRUPTED, JSON, Call, Command
from comfy_client.cli.flags import Flag
from comfy_client.contract import JsonObject
from comfy_client.errors import ComfyClientError, ConfigError
from comfy_client.prices import DEFAULT_POOL, POOLS

STATE = Path(".batch", "journal.jsonl")
_SWITCH = {"action": "store_true"}
FLAGS: Sequence[Flag] = (
    Flag(("file",), "The assets, as docs/assets.md has them.", "assets.toml", {"type": Path}),
    Flag(
        ("--out",),
        "A folder, or s3://bucket/prefix (with the variables BUCKET_*; the pictures are kept in .batch-<game> too).",
        "DIR|s3://…",
        {"default": "assets"},
    ),
    Flag(("--type",), "Make this type alone, and what it starts from.", "TYPE", {"action": "append", "default": []}),
    Flag(("--concurrency",), "Pictures at once [default 4].", "N", {"type": int, "default": 4}),
    Flag(("--dry-run",), "Show what would be made, and make nothing.", settings=_SWITCH),
    Flag(("--resend-unsure",), "Send again what may have been sent when an earlier run was killed.", settings=_SWITCH),
    Flag(("--cancel",), "On Ctrl-C, cancel the jobs under way; else the next run picks them up.", settings=_SWITCH),
    Flag(
        ("--upload-timeout",),
        f"Give a file's upload up after so long [default {UPLOAD_TIMEOUT_S:g}].",
        "SECONDS",
        {"type": float, "default": UPLOAD_TIMEOUT_S},
    ),
    Flag(("--usd-per-s",), f"What a second of a worker costs; absent: the {DEFAULT_POOL}'s.", "X", {"type": float}),
)


def run(call: Call) -> int:
    """Make the pictures. Returns 0 where all are there, 1 where some are not; errors have their own status."""
    options = call.options
    plan = read_plan(_toml(options.file), call.workflows).only(options.type)
    destination, folder = _places(call, plan)
    with Journal(folder / STATE) as journal:
        if options.dry_run:
            return _show_plan(call, plan, journal)
        settings = Settings(max(1, options.concurrency), options.resend_unsure, options.cancel)
        with call.client() as client:
            batch = Batch(client, journal, folder, settings, destination)
            try:
                made = batch.run(plan, _Bar(call, len(plan.assets)).show)
            except KeyboardInterrupt:
                then = "were cancelled" if options.cancel else "go on; the same command picks them up"
                call.screen.interrupted(f"Interrupted: what was made is kept; jobs under way {then}.")
                return INTERRUPTED
        rate = options.usd_per_s or POOLS[DEFAULT_POOL].flex_usd_per_s
        manifest = manifest_of(plan, made, journal.entries, rate)
        write(folder, manifest)
        if destination is not None:
            _publish(destination, folder)
    return _show_end(call, made, manifest, folder)


def _toml(file: Path) -> JsonObject:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error


def _places(call: Call, plan: Plan) -> tuple[BucketDestination | None, Path]:
    """Return the bucket, if one is named, and the folder that keeps pictures and journal."""
    out: str = call.options.out
    if out.startswith("s3://"):
        destination = bucket_destination(out, call.environment, call.options.upload_timeout)
        return destination, Path(f".batch-{plan.game}")
    return None, Path(out)


def _publish(destination: BucketDestination, folder: Path) -> None:
    """Put the manifest and the gallery beside the pictures."""
    for name, mime_type in ((MANIFEST, "application/json"), (GALLERY, "text/html; charset=utf-8")):
        destination.put(name, (folder / name).read_bytes(), mime_type)


def _show_plan(call: Call, plan: Plan, journal: Journal) -> int:
    states = {asset.path: journal.entry(asset.digest).state or "new" for asset in plan.assets}
    lines = []
    for asset in plan.assets:
        source = f"from {asset.source}: " if asset.source else ""
        lines.append(f"{asset.path:32}{states[asset.path]:10}{asset.kind:14}{source}{asset.prompt}")
    value = {"game": plan.game, "assets": [{"id": path, "state": state} for path, state in states.items()]}
    call.screen.show(value, *lines, f"{len(plan.assets)} pictures; nothing was sent")
    return 0


def _show_end(call: Call, made: Sequence[Made], manifest: JsonObject, folder: Path) -> int:
    counts = Counter(each.outcome for each in made)
    problems = list(failures(list(made)))
    lines = [f"!! {each.asset.path}: {each.error or each.outcome}" for each in problems]
    summary = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    lines.append(f"{summary}; ${manifest['cost_usd']:.4f} of GPU time in all. {folder / GALLERY} shows them")
    value = {**manifest, "counts": dict(counts), "folder": str(folder)}
    if problems:
        worst = next((each.error for each in problems if each.error), None)
        if worst is not None:
            value["error"] = next(asset["error"] for asset in manifest["assets"] if asset["error"])
    call.screen.show(value, *lines)
    statuses = [each.error.exit_status if isinstance(each.error, ComfyClientError) else 1 for each in problems]
    return max(statuses, default=0)


class _Bar:
    """How many pictures there are already, on a terminal."""

    def __init__(self, call: Call, total: int) -> None:
        err = call.screen.err
        self._bar: Any = tqdm(
            total=total, file=err, disable=not err.isatty() or call.screen.is_json, unit="picture", ncols=_columns()
        )

    def show(self, made: Made) -> None:
        """Count one."""
        self._bar.set_postfix_str(f"{made.asset.path}: {made.outcome}"[:60])
        self._bar.update()
        if self._bar.n >= self._bar.total:
            self._bar.close()


def _columns() -> int:
    try:
        return os.get_terminal_size(2).columns
    except OSError:
        return 100


COMMANDS = (Command("batch", "make all pictures of a game from one file", [*FLAGS, JSON], run),)
