"""Exits with status 3 and a message if no ComfyUI responds at an address within 4 s. Needs no packages."""

import sys
import threading
import urllib.error
import urllib.request

TIMEOUT_S = 4


def problem_with(url: str) -> str:
    """Return why no ComfyUI can be used at `url`, or an empty string if one responds."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/system_stats", timeout=TIMEOUT_S) as response:  # noqa: S310 - the user's own address
            return "" if b"comfyui" in response.read(100_000) else "the server there is not ComfyUI"
    except urllib.error.HTTPError as error:
        return f"the server there is not ComfyUI: it returns HTTP status {error.code}"
    except (OSError, ValueError) as error:
        return f"no response ({getattr(error, 'reason', error)})"


def main() -> None:
    """Check the address in a thread, because resolving a host name has no timeout."""
    url = sys.argv[1]
    problem = f"no response within {TIMEOUT_S} s"

    def check() -> None:
        nonlocal problem
        problem = problem_with(url)

    thread = threading.Thread(target=check, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    if problem:
        advice = "Start ComfyUI there, or unset COMFYUI_URL to use the simulator."
        sys.stderr.write(f"scripts/demo: COMFYUI_URL={url}: {problem}. {advice}\n")
        sys.exit(3)


if __name__ == "__main__":
    main()
