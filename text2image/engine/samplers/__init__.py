"""Samplers as tables: what diffusers' schedulers compute, read off once, and one update for rows of all of them."""
