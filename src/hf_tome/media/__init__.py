"""Reading images, audio and video."""
