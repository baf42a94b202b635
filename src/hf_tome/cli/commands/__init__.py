"""The commands of `hf-tome`, one file each."""
