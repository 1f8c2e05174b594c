"""Adapters (LoRA, Hu et al. 2021): small changes of a model's layers, of which each row of a batch takes its own."""
