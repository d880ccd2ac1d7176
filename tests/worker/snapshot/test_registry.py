"""Nodes of the registry: archives from a misbehaving server."""

from __future__ import annotations

import io
import stat
import struct
import zipfile

import pytest

from simulators.hugging_face import ModelResponse
from tests.worker.snapshot.conftest import SnapshotSetup, packed
from worker.snapshot.listing import RegistryNode, RestoreError
from worker.snapshot.registry import ArchiveLimits, Registry
from worker.snapshot.retries import RestoreRetryPolicy

pytestmark = pytest.mark.slow
HASTY = RestoreRetryPolicy(first_s=0.01, silence_s=20)
GOOD = {"__init__.py": "1", "web/js/a.js": "2", "empty/": ""}


def test_a_version(bench: SnapshotSetup) -> None:
    """The archive of the version is unpacked under the node's id; without a pin its hash is logged."""
    sha256 = bench.archive("some-node", "1.2.3", packed(GOOD))

    status, text = bench.restore(cnr_custom_nodes={"some-node": "1.2.3"})

    assert status == 0, text
    folder = bench.nodes / "some-node"
    assert sorted(str(each.relative_to(folder)) for each in folder.rglob("*")) == [
        "__init__.py",
        "empty",
        "web",
        "web/js",
        "web/js/a.js",
    ]
    assert stat.S_IMODE((folder / "__init__.py").stat().st_mode) & 0o555 == 0o444
    assert f'Pin it: "cnr_sha256": {{"some-node": "{sha256}"}}' in text
    assert [(asked.path, asked.query) for asked in bench.web.asked] == [
        ("/nodes/some-node/install", "version=1.2.3"),
        ("/some-node/1.2.3/node.zip", ""),
    ]


def test_a_pinned_archive(bench: SnapshotSetup) -> None:
    """With a pin the archive must match it."""
    sha256 = bench.archive("some-node", "1.2.3", packed(GOOD))

    status, text = bench.restore(cnr_custom_nodes={"some-node": "1.2.3"}, cnr_sha256={"some-node": sha256})
    assert (status, "Pin it" in text) == (0, False)

    bench.to = bench.folder / "second" / "comfyui"
    status, text = bench.restore(cnr_custom_nodes={"some-node": "1.2.3"}, cnr_sha256={"some-node": "0" * 64})
    assert status == 1
    assert f"- some-node: cnr_sha256 has {'0' * 64}, the downloaded archive of 1.2.3 has {sha256}" in text
    assert bench.is_untouched


def test_all_that_fail_are_named(bench: SnapshotSetup) -> None:
    """A node and a repository that do not exist are reported in one list."""
    status, text = bench.restore(
        cnr_custom_nodes={"none": "1.0.0"}, git_custom_nodes={bench.git.url("gone"): {"hash": "1" * 40}}
    )

    assert status == 1
    assert "- gone: " in text
    assert "- none: 127.0.0.1 returned 404. Correct its id and its version (1.0.0)\n" in text


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ({"status": "NodeVersionStatusFlagged"}, "the registry has 1.0.0 as NodeVersionStatusFlagged"),
        ({"version": "2.0.0"}, "version 1.0.0 was requested, the registry returned 2.0.0"),
        ({"downloadUrl": "file:///etc/passwd"}, "returned no https downloadUrl"),
        ({"downloadUrl": ""}, "returned no https downloadUrl"),
        ({"downloadUrl": None}, "returned no https downloadUrl"),
    ],
)
def test_what_the_registry_may_say(bench: SnapshotSetup, answer: dict[str, object], fault: str) -> None:
    """A withdrawn version, another version, and an invalid URL are errors."""
    bench.archive("node", "1.0.0", packed(GOOD), answer)

    with pytest.raises(RestoreError, match=f"node: .*{fault}"):
        Registry(bench.web.url, HASTY).fetch(RegistryNode("node", "1.0.0"), bench.folder / "node")


@pytest.mark.parametrize("body", [b"<html>", b"[" * 100_000, b"\xff", b"{}", b"3"])
def test_answer_that_is_none(bench: SnapshotSetup, body: bytes) -> None:
    """A response that is not JSON is an error."""
    bench.web.put("/nodes/node/install", body)

    with pytest.raises(RestoreError, match="returned no https downloadUrl"):
        Registry(bench.web.url, HASTY).fetch(RegistryNode("node", "1.0.0"), bench.folder / "node")


def test_what_passes_is_tried_again(bench: SnapshotSetup) -> None:
    """A busy registry and a cut archive are retried."""
    bench.archive("node", "1.0.0", packed(GOOD))
    bench.web.answer("/nodes/node/install", ModelResponse(503), ModelResponse(429))
    bench.web.cut("/node/1.0.0/node.zip", 20, 40)

    Registry(bench.web.url, HASTY).fetch(RegistryNode("node", "1.0.0"), bench.folder / "node")

    assert (bench.folder / "node" / "__init__.py").read_text() == "1"


def test_server_that_falls_silent(bench: SnapshotSetup) -> None:
    """Silence during a download times out, three times."""
    bench.archive("node", "1.0.0", packed(GOOD))
    hold = bench.web.hold("/node/1.0.0/node.zip", 10)

    with pytest.raises(RestoreError, match=r"stopped responding \(timed out\)\n  Given up after 3 attempts"):
        Registry(bench.web.url, RestoreRetryPolicy(first_s=0.01, silence_s=0.3)).fetch(
            RegistryNode("node", "1.0.0"), bench.folder / "node"
        )
    hold.release()
    assert not list(bench.folder.glob("node*"))


def test_archive_that_takes_too_long(bench: SnapshotSetup) -> None:
    """An archive that is downloaded too slowly times out too."""
    bench.archive("node", "1.0.0", packed(GOOD))

    with pytest.raises(RestoreError, match="its archive was not downloaded within 0 s"):
        Registry(bench.web.url, RestoreRetryPolicy(first_s=0.01, step_s=0)).fetch(
            RegistryNode("node", "1.0.0"), bench.folder / "node"
        )


def test_nobody_there(bench: SnapshotSetup) -> None:
    """The error names a registry that cannot be reached."""
    with pytest.raises(RestoreError, match=r"127\.0\.0\.1 could not be reached, or stopped responding"):
        Registry("http://127.0.0.1:9", HASTY).fetch(RegistryNode("node", "1.0.0"), bench.folder / "node")


def test_redirects(bench: SnapshotSetup) -> None:
    """A redirect is followed, unless its URL is not a server's."""
    bench.archive("node", "1.0.0", packed(GOOD))
    path = "/node/1.0.0/node.zip"
    registry, node = Registry(bench.web.url, HASTY), RegistryNode("node", "1.0.0")

    bench.web.answer(path, ModelResponse(302, {"Location": bench.web.other_url + path}))
    registry.fetch(node, bench.folder / "node")

    bench.web.answer(path, ModelResponse(302, {"Location": "ftp://127.0.0.1/x"}))
    with pytest.raises(RestoreError, match="returned 302"):
        registry.fetch(node, bench.folder / "second")


def test_https_is_not_left() -> None:
    """If the registry is https, so must be every URL that it returns."""
    official = Registry("https://api.comfy.org", HASTY)

    assert official.may_be_fetched("https://storage.googleapis.com/x.zip")
    assert not official.may_be_fetched("http://storage.googleapis.com/x.zip")
    assert not official.may_be_fetched("ftp://storage.googleapis.com/x.zip")


def test_registry_that_is_no_address(bench: SnapshotSetup) -> None:
    """COMFY_REGISTRY must be a URL, and its login is not shown."""
    bench.env["COMFY_REGISTRY"] = "https://user:hunter2@host"

    status, text = bench.restore()

    assert status == 3
    assert "COMFY_REGISTRY must be a URL such as https://api.comfy.org" in text
    assert "hunter2" not in text


# Hostile archives.


def special(name: str, mode: int, text: str = "") -> bytes:
    """Return a zip of one entry with that mode."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        archive.writestr(entry, text)
    return content.getvalue()


def renamed(old: str, new: str) -> bytes:
    """Return a zip of one entry with a name that zipfile would not write."""
    return packed({old: "x"}).replace(old.encode(), new.encode())


def understated(size: int) -> bytes:
    """Return a zip whose entry of zeros declares a size of one byte."""
    content = bytearray(packed({"zeros": "0" * size}))
    central = content.index(b"PK\x01\x02")
    content[22:26] = content[central + 24 : central + 28] = struct.pack("<I", 1)
    return bytes(content)


@pytest.mark.parametrize(
    ("archive", "fault"),
    [
        (packed({"../up.py": "x"}), "'../up.py', which is not a regular file inside it"),
        (packed({"a/../../up.py": "x"}), "which is not a regular file inside it"),
        (packed({"/etc/x": "x"}), "which is not a regular file inside it"),
        (packed({"a//b": "x"}), "which is not a regular file inside it"),
        (renamed("ab_cd", "ab\\cd"), "which is not a regular file inside it"),
        (packed({"C:x": "x"}), "which is not a regular file inside it"),
        (packed({"line\nbreak": "x"}), "which is not a regular file inside it"),
        (special("link", stat.S_IFLNK | 0o777, "/etc/passwd"), "'link', which is not a regular file inside it"),
        (special("pipe", stat.S_IFIFO | 0o666), "'pipe', which is not a regular file inside it"),
        (packed({str(number): "" for number in range(11)}), "its archive has 11 files, more than 10"),
        (packed({"zeros": "0" * 100_001}), "exceeds the maximum unpacked size"),
        (packed({"one": "0" * 60_000, "two": "0" * 60_000}), "exceeds the maximum unpacked size"),
        (understated(100_001), "its archive cannot be unpacked|exceeds the maximum unpacked size"),
        (packed({"a": "x", "a/b": "x"}), "two entries with one name"),
        (packed({"a/b": "x", "a": "x"}), "two entries with one name"),
        (b"no zip", "its archive cannot be unpacked"),
        (packed(GOOD)[:-30], "its archive cannot be unpacked"),
        (packed({"a": "x" * 50}).replace(b"PK\x01\x02", b"PK\x01\x03"), "its archive cannot be unpacked"),
        (bytes(60_000), "its archive has more than 50,000 bytes"),
    ],
)
def test_hostile_archives(bench: SnapshotSetup, archive: bytes, fault: str) -> None:
    """Anything but an archive of regular files within limits is rejected, and nothing is written outside the folder."""
    bench.archive("node", "1.0.0", archive)
    limits = ArchiveLimits(archive=50_000, unpacked=100_000, files=10)
    folder = bench.folder / "deep" / "node"

    with pytest.raises(RestoreError, match=fault):
        Registry(bench.web.url, HASTY, limits).fetch(RegistryNode("node", "1.0.0"), folder)

    assert not [each for each in folder.parent.rglob("*") if each != folder and folder not in each.parents]
    assert not (bench.folder / "up.py").exists()


def test_encrypted_archive(bench: SnapshotSetup) -> None:
    """An archive with a password is refused."""
    content = bytearray(packed({"a": "x"}))
    central = content.index(b"PK\x01\x02")
    content[6] |= 1
    content[central + 8] |= 1
    bench.archive("node", "1.0.0", bytes(content))

    with pytest.raises(RestoreError, match="its archive cannot be unpacked"):
        Registry(bench.web.url, HASTY).fetch(RegistryNode("node", "1.0.0"), bench.folder / "node")


def test_hostile_archive_leaves_nothing(bench: SnapshotSetup) -> None:
    """Through the command: status 1, and no folder."""
    bench.archive("node", "1.0.0", packed({"good.py": "x", "../../../up.py": "x"}))

    status, text = bench.restore(cnr_custom_nodes={"node": "1.0.0"})

    assert status == 1
    assert "- node: it contains '../../../up.py', which is not a regular file inside it" in text
    assert bench.is_untouched
