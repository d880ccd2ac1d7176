"""The command `comfy-client`: flags of the schemas (`flags`), commands as data (`commands`), one except (`main`)."""
