"""`comfy-client serve`: the names of `--api`."""

from __future__ import annotations

from tests.cli.conftest import Shell


def test_an_unknown_api_is_refused(shell: Shell) -> None:
    """`--api` with another name exits with status 2, and says which names there are."""
    refused = shell("serve", "--api=openai,stability")

    assert refused.status == 2
    assert "openai or scenario" in refused.err
