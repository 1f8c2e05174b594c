"""From prompts to chunks of tokens, and from these to embeddings of CLIP's text encoders."""
