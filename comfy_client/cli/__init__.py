"""The command `comfy-client`. `main` is the entry point; every command is declared as a `Command` with its flags."""
