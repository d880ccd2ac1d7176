"""Requests of the task `models`: any JSON value is a valid request or an `invalid_input`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.request.models_task import ACTIONS, MODELS_KEYS, ModelsRequest, name_problem, read_models_request

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.sampled_from(["loras", "..", "a.safetensors", "hf:a/b/c.safetensors", "civitai:1", "https://h/x", "A" * 64]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(), st.text(), max_size=2),
)


def outcome(request: dict[str, Any]) -> ModelsRequest | JobError:
    """Return the valid request, or the error of an invalid one."""
    try:
        return read_models_request(request)
    except JobError as error:
        return error


@given(
    action=st.one_of(st.sampled_from(ACTIONS), VALUES),
    keys=st.dictionaries(st.one_of(st.sampled_from(sorted(MODELS_KEYS)), st.text()), VALUES, max_size=5),
)
def test_any_value_is_valid_or_refused(action: Any, keys: dict[str, Any]) -> None:  # noqa: ANN401 - any JSON value
    """A request is refused with its faults, or its name stays in its folder."""
    found = outcome({**keys, "task": "models", "action": action})
    if isinstance(found, JobError):
        assert found.code is ErrorCode.INVALID_INPUT
        assert found.report.details["faults"]
    else:
        assert not name_problem(found.name or "x")
        assert ".." not in found.path.split("/")


@pytest.mark.parametrize(
    ("key", "address", "name"),
    [
        ("hf", "a/b/sub/knight.safetensors@v1", "knight.safetensors"),
        ("url", "https://huggingface.co/a/b/blob/main/k%20n.safetensors", "k n.safetensors"),
        ("url", "https://h/knight.safetensors?signature=x", "knight.safetensors"),
        ("civitai", 12, "civitai-12.safetensors"),
    ],
)
def test_the_name_is_that_of_the_address(key: str, address: object, name: str) -> None:
    """Without `name` a file gets the name in its address; a version at Civitai has only a number."""
    request = {"task": "models", "action": "download", "folder": "loras", key: address}
    assert read_models_request(request).name == name
