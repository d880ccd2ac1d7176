"""`python -m comfy_client.simulator` runs the ComfyUI simulator."""

import sys

from simulators.comfyui.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
