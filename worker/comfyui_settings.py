"""The environment variables that locate ComfyUI, its files and the local API.

The health check imports this module and must start fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from comfy_core.environment import folder, number, optional, switch, variable


@dataclass(frozen=True)
class ComfyUISettings:
    """The locations of ComfyUI, of its files, and of the worker's local API."""

    external_url: str = variable(
        "COMFYUI_URL", str, "URL of an external ComfyUI. Default: the worker starts its own from COMFYUI_DIR."
    )
    given_directory: Path | None = variable(
        "COMFYUI_DIR",
        optional(folder),
        "ComfyUI's folder, which contains `main.py`. Default: `/comfyui` if COMFYUI_URL is not set. It is only "
        "written to if COMFYUI_DATA_DIR is not set.",
    )
    given_data_directory: Path | None = variable(
        "COMFYUI_DATA_DIR",
        optional(folder),
        "Folder for ComfyUI's `input`, `output`, `temp` and `user` folders, created at boot. Default: COMFYUI_DIR. "
        "Set it together with COMFYUI_URL only if the worker can access that ComfyUI's files; it then deletes each "
        "job's files.",
    )
    comfyui_port: int = variable("COMFYUI_PORT", number(int, 1, 65535), "Port of the worker's own ComfyUI.", "8188")
    temporary_directory: Path = variable(
        "TMPDIR",
        Path,
        "Folder for temporary files, also those of uploads to ComfyUI.",
        "/tmp",  # noqa: S108 - the system default
    )
    serve_api_locally: bool = variable(
        "SERVE_API_LOCALLY",
        switch,
        "Whether the worker serves RunPod's API itself, on all interfaces and without a login, instead of taking jobs "
        "from RunPod.",
        "false",
    )
    api_port: int = variable("WORKER_API_PORT", number(int, 1, 65535), "Port of that API.", "8000")

    @property
    def comfyui_is_ours(self) -> bool:
        """Whether the worker starts and supervises ComfyUI."""
        return not self.external_url

    @property
    def comfyui_url(self) -> str:
        """The URL of ComfyUI."""
        return self.external_url or f"http://127.0.0.1:{self.comfyui_port}"

    @property
    def comfyui_directory(self) -> Path | None:
        """ComfyUI's folder; None if COMFYUI_URL is set and COMFYUI_DIR is not."""
        return self.given_directory or (Path("/comfyui") if self.comfyui_is_ours else None)

    @property
    def comfyui_data_directory(self) -> Path | None:
        """The folder of ComfyUI's files; None if COMFYUI_URL is set without COMFYUI_DATA_DIR and COMFYUI_DIR."""
        return self.given_data_directory or self.comfyui_directory
