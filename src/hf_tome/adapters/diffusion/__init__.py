"""Denoisers of diffusers: blocks run on fewer tokens, and each token gets back the change of its merged token."""
