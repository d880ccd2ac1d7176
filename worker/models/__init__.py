"""Downloads and locates the model files that ComfyUI loads: those of models.txt, and those that jobs name by address.

The download command depends only on requests, tqdm, and the modules that the Dockerfile copies for it: here, all but
`file_locks`, `folders`, `manager`, `safetensors`, `store` and the modules about addresses. The image layer with 17 GB
of weights is rebuilt when one of these modules changes, so further imports would cause more rebuilds.
"""
