"""Durable jobs: many requests that are drawn in the background, whatever ends in between."""
