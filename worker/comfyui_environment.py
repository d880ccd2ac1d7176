"""Builds the environment of the ComfyUI process from an allow-list, because every custom node can read it. No I/O."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

ALLOWED_NAMES = frozenset(
    {
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "TEMP",
        "TMP",
        "TERM",
        "COLUMNS",
        "NO_COLOR",
        "HOSTNAME",
        "VIRTUAL_ENV",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "DO_NOT_TRACK",
        "HF_HOME",
        "HUGGINGFACE_HUB_CACHE",
        "TRANSFORMERS_CACHE",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "GPU_MAX_HW_QUEUES",
        "OCL_SET_SVM_SIZE",
    }
)
ALLOWED_PREFIXES = (
    "LC_",
    "XDG_",
    "PYTHON",
    "SSL_CERT_",
    "CUDA_",
    "CUDNN_",
    "CUBLAS_",
    "NCCL_",
    "NVIDIA_",
    "PYTORCH_",
    "TORCH",
    "TRITON_",
    "OMP_",
    "KMP_",
    "MKL_",
    "OPENBLAS_",
    "NUMEXPR_",
    "MALLOC_",
    "MIMALLOC_",
    "HF_HUB_",
    "TRANSFORMERS_",
    "HIP_",
    "HSA_",
    "ROCM_",
    "ROCR_",
    "MIOPEN_",
    "ASCEND_",
    "ONEAPI_",
)
PROXY_NAMES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"})
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE|AUTH", re.IGNORECASE)
"""Matches variable names that suggest a secret. They are excluded even with an allowed prefix: NVIDIA_API_KEY."""
_CREDENTIALS = re.compile(r"^((?:[a-z][a-z0-9+.-]*://)?).*@", re.IGNORECASE | re.DOTALL)


def comfyui_environment(environment: Mapping[str, str], extra_names: Collection[str] = ()) -> dict[str, str]:
    """Return the environment for ComfyUI and its nodes: variables that are allowed or named in `extra_names`.

    Proxy addresses are included. User names and passwords are removed from them, unless `extra_names` has the variable.
    """
    kept = {name: value for name, value in environment.items() if name in extra_names or _is_harmless(name)}
    proxies = {
        name: without_credentials(value)
        for name, value in environment.items()
        if name.upper() in PROXY_NAMES and name not in extra_names
    }
    return {**kept, **proxies}


def _is_harmless(name: str) -> bool:
    return name in ALLOWED_NAMES or (name.startswith(ALLOWED_PREFIXES) and not _SECRET.search(name))


def without_credentials(url: str) -> str:
    """Return a proxy address without user name and password; other text is returned unchanged."""
    return _CREDENTIALS.sub(r"\1", url)
