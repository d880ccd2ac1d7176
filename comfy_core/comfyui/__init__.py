"""One ComfyUI: its protocol (`events`, `answers`), its connections (`server`), a run on it (`run`)."""
