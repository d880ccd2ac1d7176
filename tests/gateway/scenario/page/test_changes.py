"""The log of changed jobs, with which the web page updates its list."""

from __future__ import annotations

from comfy_client.gateway.scenario.changes import ChangeLog, Changes


def test_each_change_is_seen_once() -> None:
    """A token leads to the jobs that changed after it, each once, and to the token after them."""
    log = ChangeLog()
    begin = log.token
    log.note(["a", "b"])
    log.note(["a"])
    changes = log.since(begin, 10)

    assert changes == Changes(("b", "a"), log.token)
    assert log.since(log.token, 10) == Changes((), log.token)


def test_many_changes_come_in_parts() -> None:
    """With a limit, the tokens lead through all changes, also through those that happen meanwhile."""
    log = ChangeLog()
    token = log.token
    log.note(f"job {number}" for number in range(7))
    seen: list[str] = []
    while changes := log.since(token, 3):
        if not changes.job_ids:
            break
        seen += changes.job_ids
        token = changes.token
        if len(seen) == 3:
            log.note(["job 0"])

    assert seen == [*(f"job {number}" for number in range(7)), "job 0"]


def test_an_unknown_past_is_reported() -> None:
    """There is no result for a token of another process, for an invalid one, and for changes that were forgotten."""
    log = ChangeLog(max_jobs=3)
    begin = log.token
    log.note(["a"])
    later = log.token
    log.note(["b", "c", "d"])

    assert log.since(begin, 10) is None
    assert log.since(later, 10) == Changes(("b", "c", "d"), log.token)
    for token in (ChangeLog().token, "", "x", later + "9", later.replace(".", ".-")):
        assert log.since(token, 10) is None
