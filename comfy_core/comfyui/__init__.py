"""Client for one ComfyUI: its protocol (`events`, `responses`), its connections (`server`), and job runs (`run`)."""
