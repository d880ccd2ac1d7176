"""The web page: its HTML, style and scripts, and the routes below /shim that it uses."""
