"""Vision-language models: fewer image tokens in the prompt, or the grid restored before the projector."""
