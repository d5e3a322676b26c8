"""Embeds notes as they come, and finds them by meaning with sqlite-vec."""
