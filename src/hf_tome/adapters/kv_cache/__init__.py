"""Key-value caches of language models: entries merge after the prompt, and attention reads the sizes of the rest."""
