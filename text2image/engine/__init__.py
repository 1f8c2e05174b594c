"""The engine: step-level batching for diffusion pipelines. The only package that loads torch."""
