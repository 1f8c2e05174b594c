"""Networks that enlarge pictures, as models whose passes are tiles."""
