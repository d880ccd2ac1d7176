"""Programs that maintain this repository. tools/README.md lists them."""
