"""How models lie on disk: folders of diffusers with links, variants and shards, and checkpoints in a single file."""
