"""Plain vision and audio encoders of transformers and timm: merged tokens are carried from block to block."""
