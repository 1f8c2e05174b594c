"""The engine: step-level batching for diffusion pipelines. The only room that knows torch."""
