"""The commands of `hf-tome`, one file each; what is heavy is imported when a command runs."""
