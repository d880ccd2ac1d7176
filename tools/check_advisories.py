"""Checks that the pinned ComfyUI has the fixes of its known advisories, and that no ignored finding has expired.

The advisories are in requirements/comfyui-advisories.toml, the findings that the scan of images ignores in .grype.yaml.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped] # has no types
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
ADVISORIES = "requirements/comfyui-advisories.toml"
IGNORED = ".grype.yaml"
REVIEW_INTERVAL = timedelta(days=90)
REASON = re.compile(r"until (\d{4}-\d\d-\d\d): \S")
"""The beginning of a valid reason in .grype.yaml, such as "until 2026-12-31: not called"."""


def missing_fixes(listed: dict[str, Any], version: str) -> Iterator[str]:
    """Yield an error for each advisory whose fix is in a later version of ComfyUI than `version`."""
    for advisory in listed["advisories"]:
        if Version(version) < Version(advisory["fixed_in"]):
            yield (
                f"snapshot.json pins ComfyUI {version}, which has {advisory['id']} ({advisory['summary']}). "
                f"Pin {advisory['fixed_in']} or later (docs/how-to-add.md). {advisory['source']}"
            )


def invalid_ignores(config: dict[str, Any], today: date) -> Iterator[str]:
    """Yield an error for each ignored finding without a dated reason, or whose date is before `today`."""
    for rule in config["ignore"]:
        name = rule.get("vulnerability", rule)
        found = REASON.match(rule.get("reason", ""))
        if not found:
            yield f'{IGNORED}: {name} needs a reason like "until 2026-12-31: the vulnerable function is not called"'
        elif date.fromisoformat(found[1]) < today:
            yield f"{IGNORED}: {name} was ignored until {found[1]}. Install the fix, or set a later date with a reason"


def overdue_review(listed: dict[str, Any], today: date) -> str | None:
    """Return a warning if the last review of the advisories is more than REVIEW_INTERVAL before `today`, else None."""
    days = (today - listed["reviewed"]).days
    if days <= REVIEW_INTERVAL.days:
        return None
    return f"{ADVISORIES} was last reviewed {days} days ago. Compare it with {' and '.join(listed['pages'])}"


def main(root: Path, today: date) -> int:
    """Print a warning and the errors to stderr; return 1 if there are errors, else 0."""
    listed = tomllib.loads((root / ADVISORIES).read_text())
    version = json.loads((root / "snapshot.json").read_text())["comfyui_version"]
    if warning := overdue_review(listed, today):
        print(f"Warning: {warning}", file=sys.stderr)
    config = yaml.safe_load((root / IGNORED).read_text())
    errors = [*missing_fixes(listed, version), *invalid_ignores(config, today)]
    print(*errors, sep="\n", end="\n" if errors else "", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main(ROOT, datetime.now(UTC).date()))
