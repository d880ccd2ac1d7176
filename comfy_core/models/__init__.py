"""Lists, downloads and deletes the model files that ComfyUI loads.

The command `python -m worker.models` depends only on requests, rich, and the modules that the Dockerfile copies for it:
here `download`, `files`, `listing` and `source`. The image layer with 17 GB of weights is rebuilt when one of these
modules changes, so further imports would cause more rebuilds.
"""
