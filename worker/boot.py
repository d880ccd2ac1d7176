"""The worker's boot: starts ComfyUI, and finds and downloads its models.

If the boot fails, the worker takes no jobs.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from comfy_core.comfyui.server import ComfyServer
from comfy_core.errors import ConfigError, JobError
from comfy_core.models.listing import default_list, read_models
from comfy_core.workflow_folder import WorkflowFolder
from comfy_core.workflows import Workflow
from worker.boot_times import BootTimes
from worker.comfyui_environment import comfyui_environment
from worker.comfyui_process import ComfyProcess, KillTimeouts, ModelsMissing, ProcessHooks, await_ready
from worker.launch_flags import HELP_TIMEOUT_S, comfyui_command, query_flags
from worker.models.locations import cache_directory
from worker.models.manager import ModelManager
from worker.settings import Settings
from worker.supervision import RemoteComfyUI

DATA_FOLDERS = ("input", "output", "temp", "user")
FRONT_END_FOLDER = "worker/web"
"""Folder for ComfyUI's web pages, inside the data folder. It stays empty."""
PATHS_CONFIG_FILE = "worker/extra_model_paths.yaml"
"""The list of model folders for ComfyUI, inside the data folder. A user may have another one next to main.py."""

log = logging.getLogger(__name__)


def required_models(workflows: Mapping[str, Workflow]) -> list[str]:
    """Return the model files without which the worker takes no jobs, as `folder/file`.

    They are those of the shipped workflows, or if there are none, of the folder's. Beside shipped workflows, a workflow
    of the folder may lack a model: only its jobs fail.
    """
    if isinstance(workflows, WorkflowFolder) and workflows.others:
        workflows = workflows.others
    return sorted({model for workflow in workflows.values() for model in workflow.schema.get("x-models", ())})


def make_data_folders(data: Path) -> None:
    """Create ComfyUI's folders. Raises ConfigError if they cannot be created or written."""
    for name in (*DATA_FOLDERS, FRONT_END_FOLDER):
        folder = data / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error.strerror) from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise _unwritable(folder, "no write permission")


def _unwritable(path: Path, reason: str | None) -> ConfigError:
    return ConfigError(
        f"COMFYUI_DATA_DIR: {path} cannot be written ({reason}). Set it to a folder that this user can write, such as "
        "/tmp/comfyui; in a container with a read-only root, use a tmpfs or a volume"  # noqa: S108 - advice
    )


class Boot:
    """The boot of one worker. `begin` starts it, `finish` waits for its end, `stop` ends everything that it started.

    Args:
        settings: the worker's settings.
        server: the client of the worker's ComfyUI.
        workflows: the templates whose models are required.
        environment: the worker's environment variables. The worker's own ComfyUI gets some of them.
        hooks: what to call when the worker's own ComfyUI was restarted, or is lost.
        times: records the end of each step.
    """

    def __init__(
        self,
        settings: Settings,
        server: ComfyServer,
        workflows: Mapping[str, Workflow],
        environment: Mapping[str, str],
        hooks: ProcessHooks,
        times: BootTimes,
    ) -> None:
        self._settings = settings
        self._server = server
        self._workflows = workflows
        self._environment = environment
        self._hooks = hooks
        self._times = times
        self._model_manager: ModelManager | None = None
        self._missing_error: ModelsMissing | None = None
        self.process: ComfyProcess | None = None
        """The worker's own ComfyUI, once started."""
        self._remote = RemoteComfyUI(settings.comfyui_url, settings.hung_after_s)

    @property
    def comfyui(self) -> ComfyProcess | RemoteComfyUI:
        """The ComfyUI that jobs use: the worker's own, or the one at COMFYUI_URL."""
        return self.process or self._remote

    def begin(self) -> None:
        """Start ComfyUI and, if enabled, the download of missing models. Does not wait for either.

        Does nothing for a ComfyUI at COMFYUI_URL. If a model is missing and is not downloaded, ComfyUI is not started
        and `finish` raises the error: the platform gets errors only from `finish`. Raises ConfigError after stopping
        what was started.
        """
        settings = self._settings
        if not settings.comfyui_is_ours:
            return
        assert settings.comfyui_directory is not None  # noqa: S101 - always set for our own ComfyUI
        assert settings.comfyui_data_directory is not None  # noqa: S101 - always set for our own ComfyUI
        try:
            self._begin(settings.comfyui_directory, settings.comfyui_data_directory)
        except ConfigError:
            self.stop()
            raise

    def _begin(self, directory: Path, data: Path) -> None:
        settings = self._settings
        make_data_folders(data)
        if (added := cache_directory(data / "models", settings.volume_directory)) != data / "models":
            with contextlib.suppress(OSError):  # ComfyUI searches only the folders of a volume that exist at its start
                added.mkdir(parents=True, exist_ok=True)
        manager = ModelManager(settings, required_models(self._workflows), read_models(default_list()), settings.hub)
        self._model_manager = manager
        environment = comfyui_environment(self._environment, settings.comfyui_environment)
        help_timeout_s = min(HELP_TIMEOUT_S, settings.ready_timeout_s)
        with ThreadPoolExecutor(1) as threads:
            flags_future = threads.submit(query_flags, settings, environment, help_timeout_s)
            try:
                manager.begin()
            except ModelsMissing as missing:
                self._missing_error = missing
                return
            flags = flags_future.result()
        if not manager.is_fetching:
            self._times.note("models")
        try:
            (data / PATHS_CONFIG_FILE).write_text(manager.paths_config(), encoding="utf-8")
        except OSError as error:
            raise _unwritable(data / PATHS_CONFIG_FILE, error.strerror) from error
        command = comfyui_command(
            settings, flags, data / PATHS_CONFIG_FILE, data / FRONT_END_FOLDER, is_on_volume=manager.is_on_volume
        )
        log.debug("ComfyUI's command: %s", command)
        wait = partial(await_ready, self._server, required_models(self._workflows), settings.ready_timeout_s)
        process = ComfyProcess(
            command,
            directory,
            environment,
            settings.comfyui_url,
            wait,
            self._hooks,
            KillTimeouts(hung_s=settings.hung_after_s),
        )
        process.start()
        self.process = process
        self._times.note("comfyui_started")

    def finish(self) -> None:
        """Wait until ComfyUI responds and lists its models. Jobs can be taken afterwards.

        Raises JobError or ModelsMissing, after stopping the worker's own ComfyUI.
        """
        try:
            self._await_comfyui()
            self._times.note("comfyui_ready")
        except (JobError, ModelsMissing) as error:
            self.stop()
            log.error("the boot failed: %s", error)  # noqa: TRY400 - an expected error
            if self.process is not None:
                log.error("ComfyUI's last lines:\n%s", "\n".join(self.process.log.lines()))  # noqa: TRY400 - an expected error
            raise
        self._times.log(self._server.system().version)

    def stop(self) -> None:
        """Stop a running download and the worker's own ComfyUI, and close the connections to ComfyUI."""
        if self._model_manager is not None:
            self._model_manager.stop()
        self._remote.stop()
        self._server.close()
        if self.process is not None:
            self.process.stop()

    def _await_comfyui(self) -> None:
        if self._missing_error is not None:
            raise self._missing_error
        if self.process is None or self._model_manager is None:
            models = required_models(self._workflows)
            await_ready(self._server, models, self._settings.ready_timeout_s, lambda: None)
            self._remote.start()
            return
        if self._model_manager.is_fetching:
            self._model_manager.await_all(self.process.start_error)
            self._times.note("models")
        self.process.await_start()
