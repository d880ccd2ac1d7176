"""Exits with status 3 and a message if no ComfyUI responds at an address within 4 s. Needs no packages."""

import sys
import threading
import urllib.error
import urllib.request

LIMIT_S = 4


def problem(url: str) -> str:
    """Return why the address is not that of a ComfyUI, or an empty text."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/system_stats", timeout=LIMIT_S) as response:  # noqa: S310 - the user's own address
            return "" if b"comfyui" in response.read(100_000) else "the server there is not ComfyUI"
    except urllib.error.HTTPError as error:
        return f"the server there is not ComfyUI: it returns HTTP status {error.code}"
    except (OSError, ValueError) as error:
        return f"no response ({getattr(error, 'reason', error)})"


def main() -> None:
    """Check the address in a thread, because resolving a name has no timeout."""
    url = sys.argv[1]
    found = [f"no response within {LIMIT_S} s"]

    def check() -> None:
        found[0] = problem(url)

    thread = threading.Thread(target=check, daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    if found[0]:
        advice = "Start ComfyUI there, or unset COMFYUI_URL to use the simulator."
        sys.stderr.write(f"scripts/demo: COMFYUI_URL={url}: {found[0]}. {advice}\n")
        sys.exit(3)


if __name__ == "__main__":
    main()
