"""The client of a ComfyUI worker: pictures in, pictures out. Importing it reads no file and no variable."""

__version__ = "0.1.0"
