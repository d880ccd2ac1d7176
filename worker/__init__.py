"""Code that runs inside the worker container: settings, boot, job execution, result packing."""
